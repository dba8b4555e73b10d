package browsertest

import (
	"compress/gzip"
	_ "embed"
	"io"
	"strings"
	"sync"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// axe-core by Deque Systems, MPL-2.0, as its package of this version has it.
//
//go:embed axe-core-4.11.0.min.js.gz
var axeCore string

var axe = sync.OnceValues(func() (string, error) {
	r, err := gzip.NewReader(strings.NewReader(axeCore))
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(r)
	return string(text), err
})

// accessible holds the page against WCAG 2.2 AA and what axe-core's authors recommend: who
// sees little, hears pages or uses a keyboard must be able to run a rack.
func (c *Chromium) accessible(name string) {
	c.t.Helper()
	script, err := axe()
	if err != nil {
		c.t.Fatal(err)
	}
	awaits := true
	Eval[bool](c, script+"; true")
	const run = `axe.run(document, {resultTypes: ["violations"]}).then(r => r.violations.filter(v => v.impact !== "minor").map(v =>
		v.impact + " " + v.id + ": " + v.help + ": " + v.nodes.slice(0, 3).map(n => n.html + " " + n.failureSummary).join(" | ")))`
	found, err := chromedp.Run(c.ctx, chromedp.Evaluate[[]string](run, func(p *runtime.EvaluateParams) { p.AwaitPromise = &awaits }))
	if err != nil {
		c.t.Fatalf("%s: %v", name, err)
	}
	for _, f := range found {
		c.t.Errorf("%s: %s", name, f)
	}
}
