package client_test

import (
	"context"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
)

// transport answers requests without a network.
type transport func(*http.Request) *http.Response

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) { return t(r), nil }

// answered is an answer of a status, a content type and a body.
func answered(status int, contentType string, body io.Reader) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {contentType}}, Body: io.NopCloser(body)}
}

func newClient(t *testing.T, answer transport) *client.Client {
	t.Helper()
	c, err := client.New("http://provisiond", client.Options{Transport: answer})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestOperations calls the method of every operation of the document with all that it
// takes, and looks at what is sent. make generate mends what it finds.
func TestOperations(t *testing.T) {
	const segment = "a/b ?%" // of a path
	var sent *http.Request
	var body []byte
	c := reflect.ValueOf(newClient(t, func(r *http.Request) *http.Response {
		sent, body = r, nil
		if r.Body != nil {
			body, _ = io.ReadAll(r.Body)
		}
		return answered(200, "application/json", strings.NewReader("{}"))
	}))
	byName := map[string]reflect.Value{}
	for i := range c.NumMethod() {
		if c.Type().Method(i).Type.NumIn() > 1 && c.Type().Method(i).Name != "CA" {
			byName[strings.ToLower(c.Type().Method(i).Name)] = c.Method(i)
		}
	}
	document := admin.Document("test")
	for route, item := range document.Paths {
		for _, op := range []*huma.Operation{item.Get, item.Put, item.Post, item.Delete, item.Patch} {
			if op == nil {
				continue
			}
			name := strings.ReplaceAll(op.OperationID, "-", "")
			method, ok := byName[name]
			if !ok {
				t.Errorf("%s has no method", op.OperationID)
				continue
			}
			delete(byName, name)
			in := []reflect.Value{reflect.ValueOf(t.Context())}
			for i := 1; i < method.Type().NumIn()-1; i++ {
				in = append(in, filled(t, method.Type().In(i), segment))
			}
			if err, _ := method.Call(in)[1].Interface().(error); err != nil {
				t.Errorf("%s: %v", op.OperationID, err)
				continue
			}
			want := route
			for _, p := range op.Parameters {
				switch p.In {
				case "path":
					want = strings.ReplaceAll(want, "{"+p.Name+"}", "a%2Fb%20%3F%25")
				case "query":
					if !sent.URL.Query().Has(p.Name) {
						t.Errorf("%s does not send the parameter %s", op.OperationID, p.Name)
					}
				case "header":
					if sent.Header.Get(p.Name) == "" {
						t.Errorf("%s does not send the header %s", op.OperationID, p.Name)
					}
				}
			}
			if sent.Method != op.Method || sent.URL.EscapedPath() != want {
				t.Errorf("%s sends %s %s, not %s %s", op.OperationID, sent.Method, sent.URL.EscapedPath(), op.Method, want)
			}
			if op.RequestBody == nil {
				if len(body) > 0 {
					t.Errorf("%s sends %s", op.OperationID, body)
				}
				continue
			}
			content := op.RequestBody.Content[sent.Header.Get("Content-Type")]
			if content == nil || len(body) == 0 {
				t.Errorf("%s sends %q, %s", op.OperationID, sent.Header.Get("Content-Type"), body)
				continue
			}
			if ref := content.Schema.Ref; ref != "" && document.Components.Schemas.TypeFromRef(ref) != in[len(in)-1].Type() {
				t.Errorf("%s takes a %s", op.OperationID, in[len(in)-1].Type())
			}
		}
	}
	for name := range byName {
		t.Errorf("there is no operation %s", name)
	}
}

// filled is a parameter or a body in which nothing that is sent is zero.
func filled(t *testing.T, of reflect.Type, text string) reflect.Value {
	t.Helper()
	v := reflect.New(of).Elem()
	switch {
	case of == reflect.TypeFor[io.Reader]():
		v.Set(reflect.ValueOf(strings.NewReader("stream")))
	case of.Kind() == reflect.String:
		v.SetString(text)
	case strings.HasSuffix(of.Name(), "Params"):
		for i := range of.NumField() {
			switch f := v.Field(i).Addr().Interface().(type) {
			case *string:
				*f = "x"
			case *bool:
				*f = true
			case *int:
				*f = 7
			case *[]string:
				*f = []string{"x", "y"}
			case *time.Time:
				*f = time.Unix(1, 0)
			default:
				t.Fatalf("%s.%s is a %T", of, of.Field(i).Name, f)
			}
		}
	}
	return v
}

// TestZeroIsNotSent: what was not given is not there, and what was is as it was given.
func TestZeroIsNotSent(t *testing.T) {
	var asked []string
	c := newClient(t, func(r *http.Request) *http.Response {
		asked = append(asked, r.URL.String())
		return answered(200, "application/json", strings.NewReader("{}"))
	})
	since := time.Date(2026, 11, 22, 7, 24, 54, 1000, time.UTC)
	for _, call := range []func(context.Context) (*http.Response, error){
		func(ctx context.Context) (*http.Response, error) {
			return c.ListMachines(ctx, client.ListMachinesParams{})
		},
		func(ctx context.Context) (*http.Response, error) {
			return c.ListMachines(ctx, client.ListMachinesParams{Label: []string{"a=b", "c=d"}, Limit: 7, Q: "x&y"})
		},
		func(ctx context.Context) (*http.Response, error) {
			return c.ListAudit(ctx, client.ListAuditParams{Since: since})
		},
		func(ctx context.Context) (*http.Response, error) {
			return c.DeleteMachine(ctx, "..", client.DeleteMachineParams{Force: true})
		},
	} {
		if err := client.Done(call(t.Context())); err != nil {
			t.Error(err)
		}
	}
	want := []string{
		"http://provisiond/api/v1/machines",
		"http://provisiond/api/v1/machines?label=a%3Db&label=c%3Dd&limit=7&q=x%26y",
		"http://provisiond/api/v1/audit?since=2026-11-22T07%3A24%3A54.000001Z",
		"http://provisiond/api/v1/machines/..?force=true",
	}
	if !slices.Equal(asked, want) {
		t.Errorf("asked for\n%s", strings.Join(asked, "\n"))
	}
}
