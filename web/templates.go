package web

import (
	"bytes"
	"fmt"
	"html/template"
	"io/fs"
	"math"
	"path"
	"strings"
	"time"
)

// templateSet is the templates of one page: its own, what all pages share, and their
// common layout.
type templateSet struct{ t *template.Template }

// page makes a whole page.
func (s *templateSet) page(v view) ([]byte, error) {
	var out bytes.Buffer
	err := s.t.ExecuteTemplate(&out, "layout.html", v)
	return out.Bytes(), err
}

// fragment makes a part of a page.
func (s *templateSet) fragment(name string, data any) (string, error) {
	var out strings.Builder
	err := s.t.ExecuteTemplate(&out, name, data)
	return strings.TrimSpace(out.String()), err
}

// templates has the templates of each page by its name, which is that of its file.
// What is in layout.html and shared.html is there for all.
func templates() map[string]*templateSet {
	// In the binary: right or wrong for everybody.
	common := template.Must(template.New("").Funcs(functions).ParseFS(files, "templates/layout.html", "templates/shared.html"))
	all, err := fs.Glob(files, "templates/*.html")
	if err != nil {
		panic(err)
	}
	out := map[string]*templateSet{}
	for _, file := range all {
		name := strings.TrimSuffix(path.Base(file), ".html")
		if name != "layout" && name != "shared" {
			out[name] = &templateSet{template.Must(template.Must(common.Clone()).ParseFS(files, file))}
		}
	}
	return out
}

// navLink leads to a page.
type navLink struct {
	Path, Text string
	Here       bool // it is the one that is shown, or holds it
}

// fieldProblem is what is wrong with a field, as text of an element.
type fieldProblem struct{ ID, Text string }

// fieldView is a field of a form in it.
type fieldView struct {
	Problems problems
	Field    formField
	More     string // the list of patches that has just got another
}

func problemID(field string) string {
	return "problem-" + strings.NewReplacer("[", "-", "]", "", ".", "-").Replace(field)
}

// functions are what templates can do beside what Go's own can.
var functions = template.FuncMap{
	"join": strings.Join,
	"link": func(v view, path, text string) navLink {
		return navLink{path, text, v.At == path || path != "/" && strings.HasPrefix(v.At, path+"/")}
	},
	"problem": func(p problems, field string) fieldProblem {
		return fieldProblem{problemID(field), p.Of(field)}
	},
	"field":       func(p problems, f formField, more string) fieldView { return fieldView{p, f, more} },
	"tokenLives":  func() any { return tokenLives },
	"int64":       func(n uint64) int64 { return int64(min(n, math.MaxInt64)) },
	"auditAction": auditAction,
	"auditTarget": auditTarget,
	"etag":        etagOf,
	"nextLife":    func(epoch uint64) uint64 { return epoch + 1 },
	"roles":       func() []string { return []string{"controlplane", "worker"} },
	"role":        roleWords,
	"modes":       func() []struct{ Name, Said string } { return modes },
	"addressUses": func() []addressUse { return addressUses },
	"used":        used,
	"allPhases":   func() []string { return phases[:] },
	"percent":     func(part, of int64) int64 { return part * 100 / max(of, 1) },
	"bytes":       size,
	"took":        took,
	"next":        func(i int) int { return i + 1 },
	"others":      func(all int, named []string) int { return all - len(named) },
	"diffLines":   diffLines,
	"clock":       func(t time.Time) string { return t.UTC().Format("15:04:05") },
	"stamp":       func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") },
	"iso":         func(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") },
	"plural": func(n int, one, many string) string {
		if n == 1 {
			return fmt.Sprintf("%d %s", n, one)
		}
		return fmt.Sprintf("%d %s", n, many)
	},
}

func roleWords(role string) string {
	if role == "controlplane" {
		return "control plane"
	}
	return role
}

// diffLine is a line of a diff.
type diffLine struct{ Class, Text string }

func diffLines(diff string) []diffLine {
	var out []diffLine
	for line := range strings.Lines(diff) {
		d := diffLine{Text: strings.TrimRight(line, "\n")}
		switch {
		case strings.HasPrefix(line, "+++"), strings.HasPrefix(line, "---"), strings.HasPrefix(line, "@@"):
			d.Class = "quiet"
		case strings.HasPrefix(line, "+"):
			d.Class = "added"
		case strings.HasPrefix(line, "-"):
			d.Class = "removed"
		}
		out = append(out, d)
	}
	return out
}

// size is a number of bytes in a few characters.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}
