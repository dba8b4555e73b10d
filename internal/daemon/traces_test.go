package daemon

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
	"github.com/provisiond/provisiond/internal/tracing"
)

// collector takes OTLP over HTTP and keeps what it is sent.
type collector struct {
	*httptest.Server
	mu      sync.Mutex
	problem string
	raw     []byte
	spans   []*tracepb.Span
	down    bool // answers 503
	arrived chan struct{}
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	listener, err := net.Listen("tcp6", "[::1]:0")
	check(t, err)
	c := &collector{arrived: make(chan struct{}, 1)}
	c.Server = &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(c.take)}}
	c.Start()
	t.Cleanup(c.Close)
	return c
}

func (c *collector) take(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() {
		select {
		case c.arrived <- struct{}{}:
		default:
		}
	}()
	if c.down {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" || r.Header.Get("Authorization") != "Bearer collectors-only" {
		c.problem = r.Method + " " + r.URL.Path + " with " + r.Header.Get("Content-Type")
	}
	var data tracepb.TracesData
	zip, err := gzip.NewReader(r.Body)
	if err == nil {
		var body []byte
		if body, err = io.ReadAll(zip); err == nil {
			c.raw = append(c.raw, body...)
			err = proto.Unmarshal(body, &data)
		}
	}
	if err != nil {
		c.problem = err.Error()
	}
	for _, rs := range data.ResourceSpans {
		if attribute(rs.GetResource().GetAttributes(), "service.name") != "provisiond" {
			c.problem = "no service.name"
		}
		for _, ss := range rs.ScopeSpans {
			c.spans = append(c.spans, ss.Spans...)
		}
	}
}

func (c *collector) fail(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
}

// await returns all spans, once those of a name that belong to none are at least so many.
func (c *collector) await(t *testing.T, name string, roots int) []*tracepb.Span {
	t.Helper()
	deadline := time.After(within)
	for {
		c.mu.Lock()
		spans, problem := slices.Clone(c.spans), c.problem
		c.mu.Unlock()
		if problem != "" {
			t.Fatal(problem)
		}
		if n := len(rootsOf(spans, name)); n >= roots {
			return spans
		}
		select {
		case <-c.arrived:
		case <-deadline:
			t.Fatalf("of %d traces called %q came %d", roots, name, len(rootsOf(spans, name)))
		}
	}
}

func rootsOf(spans []*tracepb.Span, name string) (roots []*tracepb.Span) {
	for _, s := range spans {
		if len(s.ParentSpanId) == 0 && s.Name == name {
			roots = append(roots, s)
		}
	}
	return roots
}

func attribute(of []*commonpb.KeyValue, key string) string {
	for _, kv := range of {
		if kv.Key == key {
			return kv.Value.GetStringValue()
		}
	}
	return ""
}

// traced is a lab whose daemon sends its traces to a collector.
func traced(t *testing.T) (*lab, *collector) {
	t.Helper()
	l, c := newLab(t), newCollector(t)
	headers := filepath.Join(t.TempDir(), "headers")
	check(t, os.WriteFile(headers, []byte("Authorization: Bearer collectors-only\n"), 0o600))
	l.cfg.Tracing = &tracing.Config{Endpoint: c.URL, HeadersFile: headers}
	return l, c
}

// TestTraces boots a rack, reimages one of its machines, and looks at what a collector
// was told of it.
func TestTraces(t *testing.T) {
	l, c := traced(t)
	c.fail(true) // when the rack boots, which is none of its concern
	r := l.rack(t, racktest.RackOptions{Firmware: racktest.PXE})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	k, stop := l.start(t, nil)
	runRack(t, r)
	verify(t, k, r)
	select {
	case <-c.arrived: // in vain
	case <-time.After(within):
		t.Fatal("the collector was not asked")
	}
	c.fail(false)
	spans := c.await(t, "boot", planes+workers)
	counted := gather(t, l.daemon)
	if failed, dropped := value(counted, "provisiond_traces_total", "failed"), value(counted, "provisiond_traces_total", "dropped"); failed < 1 || dropped != 0 {
		t.Errorf("%v traces failed and %v were dropped", failed, dropped)
	}

	for _, root := range rootsOf(spans, "boot") {
		name := attribute(root.Attributes, "provisiond.machine")
		v, err := k.Machine(t.Context(), name)
		check(t, err)
		boot := v.Facts.Boots[len(v.Facts.Boots)-1]
		for key, want := range map[string]string{
			"cluster": "lab", "role": string(v.Machine.Role), "mac": string(boot.MAC), "arch": "amd64", "client": "pxe", "plan": "install", "boot": "1",
			"image": "v1.13.6/default/amd64", "phase": "ready", "outcome": "ready",
		} {
			if have := attribute(root.Attributes, "provisiond."+key); have != want {
				t.Errorf("%s: %s is %q, want %q", name, key, have, want)
			}
		}
		if root.Status.GetCode() != tracepb.Status_STATUS_CODE_OK || root.StartTimeUnixNano != uint64(boot.Started.UnixNano()) || root.EndTimeUnixNano < uint64(boot.Ready.UnixNano()) {
			t.Errorf("%s: the root is %v, the boot %+v", name, root, boot)
		}
		// All machines of the simulation have one address, so nobody knows who read a loader.
		ends := map[string]time.Time{"dhcpv6": boot.Offered, "script": boot.Script, "kernel": boot.Kernel, "initramfs": boot.Initramfs, "config": boot.Config, "install": boot.API, "ready": boot.Ready}
		for _, s := range spans {
			if !bytes.Equal(s.TraceId, root.TraceId) || s == root {
				continue
			}
			if !bytes.Equal(s.ParentSpanId, root.SpanId) || s.StartTimeUnixNano < root.StartTimeUnixNano || s.EndTimeUnixNano > root.EndTimeUnixNano || s.EndTimeUnixNano < s.StartTimeUnixNano {
				t.Errorf("%s: %v is not in %v", name, s, root)
			}
			if end, ok := ends[s.Name]; ok && s.EndTimeUnixNano != uint64(end.UnixNano()) {
				t.Errorf("%s: %s ends at %v, not at %v", name, s.Name, s.EndTimeUnixNano, end)
			}
			delete(ends, s.Name)
		}
		if len(ends) > 0 {
			t.Errorf("%s: there is no span of %v", name, ends)
		}
		if boot.KernelTook <= 0 || boot.InitramfsTook <= 0 {
			t.Errorf("%s: nobody knows how long its files took: %+v", name, boot)
		}
		if strings.Contains(string(c.all()), boot.Token) {
			t.Errorf("%s: the token of its boot was sent", name)
		}
	}
	if strings.Contains(string(c.all()), "collectors-only") {
		t.Error("the header is in a trace")
	}
	if n := len(rootsOf(spans, "bootstrap")); n != 1 {
		t.Errorf("%d bootstraps were sent", n)
	}
	if *update {
		keepBoots(t, k)
	}

	stop()
	k, _ = l.start(t, nil) // and none is sent twice
	order(t, k, inventory.Event{Kind: inventory.ReimageOrdered, Machine: "w-1", Message: "a test"})
	spans = c.await(t, "reimage", 1)
	if n := len(rootsOf(spans, "boot")); n != planes+workers+1 {
		t.Errorf("%d boots were sent for %d machines of which one booted twice", n, planes+workers)
	}
	seen := map[string]bool{}
	for _, s := range spans {
		if id := string(s.TraceId) + string(s.SpanId); seen[id] {
			t.Errorf("two spans have one id: %v", s)
		} else {
			seen[id] = true
		}
	}
	linked := 0
	for _, s := range spans {
		for _, link := range s.Links {
			if linked++; !seen[string(link.TraceId)+string(link.SpanId)] {
				t.Errorf("%s of %s is linked to what there is not", s.Name, attribute(s.Attributes, "provisiond.machine"))
			}
		}
	}
	if linked < 4 { // the bootstrap and its machine's boot, the reimage and the boot after it
		t.Errorf("there are %d links", linked)
	}
}

func (c *collector) all() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.raw)
}

// keepBoots writes what is known of a rack's boots, for the tests of package tracing.
func keepBoots(t *testing.T, k *inventory.Keeper) {
	t.Helper()
	views, err := k.Machines(t.Context(), "", 0)
	check(t, err)
	_, b, err := k.Cluster(t.Context(), "lab")
	check(t, err)
	kept := struct {
		Bootstrap *inventory.Bootstrap
		Machines  []*inventory.Machine
		Facts     []inventory.Facts
	}{Bootstrap: b}
	for _, v := range views {
		for i, boot := range v.Facts.Boots {
			public := *boot
			public.Token = ""
			v.Facts.Boots[i] = &public
		}
		v.Facts.Noted = ""
		kept.Machines, kept.Facts = append(kept.Machines, v.Machine), append(kept.Facts, v.Facts)
	}
	text, err := json.MarshalIndent(kept, "", " ")
	check(t, err)
	check(t, os.WriteFile("../tracing/testdata/rack.json", append(text, '\n'), 0o644))
}

// TestNoTraces: unless it is told to, the daemon sends nothing and has no part for it.
func TestNoTraces(t *testing.T) {
	l := newLab(t)
	d, err := New(t.Context(), Options{Config: l.cfg})
	check(t, err)
	defer func() { check(t, d.close()) }()
	if i := slices.IndexFunc(d.parts, func(p part) bool { return p.name == "tracing" }); l.cfg.Tracing != nil || i >= 0 {
		t.Errorf("tracing is on: %+v", l.cfg.Tracing)
	}
}
