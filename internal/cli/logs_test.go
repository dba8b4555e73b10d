package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/api"
)

// TestMachineLogs prints a log, and goes on with a stream that breaks.
func TestMachineLogs(t *testing.T) {
	line := func(id int, kind string, boot int, text string) string {
		b, err := json.Marshal(api.LogLine{ID: uint64(id), Time: time.Date(2026, 11, 22, 7, 24, 54, 270e6, time.UTC), Kind: kind, Boot: uint64(boot), Text: text})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	connections := 0
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/machines/cp-1/logs", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("follow") != "true" {
			if r.FormValue("limit") != "7" {
				t.Errorf("asked for %s", r.URL)
			}
			fmt.Fprintf(w, `{"items":[%s,%s,%s]}`, line(1, "kernel", 1, "one"), line(2, "event", 0, "phase config start"), line(3, "kernel", 2, "two\x1b[2J"))
			return
		}
		connections++
		switch last := r.Header.Get("Last-Event-Id"); {
		case connections == 1 && last == "3":
			fmt.Fprintf(w, ": hello\n\nid: 4\ndata: %s\n\n", line(4, "kernel", 2, "three"))
		case connections == 2 && last == "4":
			fmt.Fprintf(w, "id: 5\ndata: %s\n\n", line(5, "kernel", 3, "four"))
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		default:
			t.Errorf("connection %d after %q", connections, last)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"status":404,"detail":"machine \"nobody\": not found"}`)
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	const head = "2026-11-22 07:24:54Z  kernel  one\n2026-11-22 07:24:54Z  event   phase config start\n" +
		"---- the kernel starts again, boot 2 ----\n2026-11-22 07:24:54Z  kernel  two\uFFFD[2J\n"

	if code, out, stderr := run(t, server.URL, "machine", "logs", "cp-1", "-n", "7"); code != exitOK || out != head {
		t.Errorf("%d %q %s", code, out, stderr)
	}
	if code, out, _ := run(t, server.URL, "machine", "logs", "cp-1", "-n", "7", "-o", "json"); code != exitOK || strings.Count(out, "\n") != 3 || !strings.HasPrefix(out, `{"id":1,`) {
		t.Errorf("%d %q", code, out)
	}
	if code, out, _ := run(t, server.URL, "machine", "logs", "cp-1", "-n", "7", "-o", "yaml"); code != exitOK || strings.Count(out, "---\n") != 3 {
		t.Errorf("%d %q", code, out)
	}
	if code, _, stderr := run(t, server.URL, "machine", "logs", "nobody", "-f"); code == exitOK || !strings.Contains(stderr, "not found") {
		t.Errorf("%d %s", code, stderr)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // against a hang only
	defer cancel()
	r, w := io.Pipe()
	done := make(chan int, 1)
	go func() {
		code := Run(ctx, New("x"), []string{"--server", server.URL, "machine", "logs", "cp-1", "-f", "-n", "7"}, strings.NewReader(""), w, io.Discard)
		_ = w.Close()
		done <- code
	}()
	const want = head + "2026-11-22 07:24:54Z  kernel  three\n---- the kernel starts again, boot 3 ----\n2026-11-22 07:24:54Z  kernel  four\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Errorf("%v: followed %q", err, got)
	}
	cancel()
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("then %q, %v", rest, err)
	}
	if code := <-done; code != exitOK {
		t.Errorf("exit code %d", code)
	}
}
