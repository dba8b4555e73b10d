package tracing

import (
	"compress/gzip"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/provisiond/provisiond/internal/inventory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSend: over TLS, with headers, what is sent is what arrives; and what is done about
// each answer.
func TestSend(t *testing.T) {
	want := newTrace("boot", "w-1", 1, start).root("boot", at(0), at(120))
	status, elsewhere := http.StatusOK, 0
	mux := http.NewServeMux()
	mux.HandleFunc("POST /otlp/v1/traces", func(w http.ResponseWriter, r *http.Request) {
		var data tracepb.TracesData
		zip, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		body, err := io.ReadAll(zip)
		if err = errors.Join(err, proto.Unmarshal(body, &data)); err != nil || len(data.ResourceSpans) != 1 || len(data.ResourceSpans[0].ScopeSpans) != 1 {
			t.Errorf("%v, %v", err, &data)
			return
		}
		if spans := data.ResourceSpans[0].ScopeSpans[0].Spans; len(spans) != 1 || !proto.Equal(spans[0], want) {
			t.Errorf("what arrived is %v", spans)
		}
		if r.Header.Get("X-Scope") != "a: b" || r.Header.Get("Authorization") != "Bearer x" || r.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("the headers are %v", r.Header)
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
	})
	mux.HandleFunc("/elsewhere", func(http.ResponseWriter, *http.Request) { elsewhere++ })
	server := httptest.NewTLSServer(mux)
	defer server.Close()
	ca := write(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	c, err := NewCollector(Config{Endpoint: server.URL + "/otlp/", CAFile: ca, HeadersFile: write(t, "Authorization: Bearer x\n\nx-scope:a: b\r\n")}, "v1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, tt := range []struct {
		status      int
		ok, refused bool
	}{{200, true, false}, {202, true, false}, {400, false, true}, {413, false, true}, {401, false, false}, {429, false, false}, {503, false, false}, {307, false, false}} {
		status = tt.status
		if err := c.Send(t.Context(), []*tracepb.Span{want}); (err == nil) != tt.ok || errors.Is(err, errRefused) != tt.refused {
			t.Errorf("%d: %v", tt.status, err)
		}
	}
	if elsewhere > 0 {
		t.Error("it was led elsewhere")
	}
	other, err := NewCollector(Config{Endpoint: server.URL}, "v1")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Send(t.Context(), []*tracepb.Span{want}); err == nil || errors.Is(err, errRefused) {
		t.Errorf("a certificate that nobody vouches for: %v", err)
	}
}

func TestBadCollector(t *testing.T) {
	ca := write(t, "no certificate")
	for name, tt := range map[string]struct {
		c     Config
		field string // empty: it is good
	}{
		"https":                     {Config{Endpoint: "https://otel.example.org:4318"}, ""},
		"a path":                    {Config{Endpoint: "https://otel.example.org/otlp"}, ""},
		"http":                      {Config{Endpoint: "http://[2001:db8::5]:4318"}, ""},
		"headers to ourselves":      {Config{Endpoint: "http://[::1]:4318", HeadersFile: write(t, "a: b")}, ""},
		"headers to a name of ours": {Config{Endpoint: "http://localhost:4318", HeadersFile: write(t, "a: b")}, ""},
		"headers in the clear":      {Config{Endpoint: "http://otel.example.org:4318", HeadersFile: write(t, "a: b")}, "endpoint"},
		"no scheme":                 {Config{Endpoint: "otel.example.org:4318"}, "endpoint"},
		"gRPC":                      {Config{Endpoint: "grpc://otel.example.org:4317"}, "endpoint"},
		"a password":                {Config{Endpoint: "https://a:hunter2@otel.example.org"}, "endpoint"},
		"a query":                   {Config{Endpoint: "https://otel.example.org?hunter2"}, "endpoint"},
		"no host":                   {Config{Endpoint: "https://"}, "endpoint"},
		"a CA for nothing":          {Config{Endpoint: "http://[::1]:4318", CAFile: ca}, "ca"},
		"a CA that is none":         {Config{Endpoint: "https://[::1]:4318", CAFile: ca}, "ca"},
		"no file of a CA":           {Config{Endpoint: "https://[::1]:4318", CAFile: ca + "x"}, "ca"},
		"no file of headers":        {Config{Endpoint: "https://[::1]:4318", HeadersFile: ca + "x"}, "headersFile"},
		"no headers":                {Config{Endpoint: "https://[::1]:4318", HeadersFile: write(t, "\n")}, "headersFile"},
		"a header without a name":   {Config{Endpoint: "https://[::1]:4318", HeadersFile: write(t, "a: b\nhunter2\n")}, "headersFile"},
		"a header with a control":   {Config{Endpoint: "https://[::1]:4318", HeadersFile: write(t, "a: hunter2\x00\n")}, "headersFile"},
		"a header's name":           {Config{Endpoint: "https://[::1]:4318", HeadersFile: write(t, "a b: hunter2\n")}, "headersFile"},
	} {
		t.Run(name, func(t *testing.T) {
			err := tt.c.Validate()
			if err == nil {
				_, err = NewCollector(tt.c, "v1")
			}
			var fe *inventory.FieldError
			switch {
			case tt.field == "" && err != nil:
				t.Error(err)
			case tt.field != "" && (!errors.As(err, &fe) || fe.Field != "tracing."+tt.field || fe.Fix == "" || strings.Contains(err.Error(), "hunter2")):
				t.Errorf("%v", err)
			}
		})
	}
}
