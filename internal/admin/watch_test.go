package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// feed is a client of watch-machines, inside a bubble of synctest.
type feed struct {
	t      *testing.T
	status int
	end    func() // and waits until the stream has ended
	pipe   *io.PipeReader

	mu   sync.Mutex
	got  []said
	last string // id
}

// said is one message.
type said struct{ id, event, data string }

// pipeResponse is a ResponseWriter whose reader sets the pace.
type pipeResponse struct {
	header http.Header
	*io.PipeWriter
	status chan int
}

func (p pipeResponse) Header() http.Header { return p.header }
func (p pipeResponse) Flush()              {}
func (p pipeResponse) WriteHeader(status int) {
	select {
	case p.status <- status:
	default:
	}
}

func (p pipeResponse) Write(b []byte) (int, error) {
	p.WriteHeader(http.StatusOK)
	return p.PipeWriter.Write(b)
}

// open begins a stream that nobody reads yet.
func (r *rig) open(t *testing.T, p *Principal, query string, header ...string) *feed {
	t.Helper()
	ctx, cancel := context.WithCancel(as(t.Context(), p))
	req := httptest.NewRequestWithContext(ctx, http.MethodGet, "http://[::1]/api/v1/machines/watch"+query, nil)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	in, out := io.Pipe()
	done := make(chan struct{})
	w := pipeResponse{http.Header{}, out, make(chan int, 1)}
	go func() {
		defer close(done)
		r.Handler().ServeHTTP(w, req)
		_ = out.Close()
	}()
	f := &feed{t: t, pipe: in, status: <-w.status}
	f.end = sync.OnceFunc(func() {
		cancel()
		_ = in.Close()
		<-done
	})
	t.Cleanup(f.end)
	return f
}

// watch is open, and reads all that comes.
func (r *rig) watch(t *testing.T, p *Principal, query string, header ...string) *feed {
	t.Helper()
	f := r.open(t, p, query, header...)
	f.read()
	return f
}

func (f *feed) read() {
	go func() {
		lines := bufio.NewScanner(f.pipe)
		lines.Buffer(nil, 1<<20)
		var m said
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch name {
			case "id":
				m.id = value
			case "event":
				m.event = value
			case "data":
				m.data = value
			case "":
				f.mu.Lock()
				if m.event != "" {
					f.got = append(f.got, m)
				}
				if m.id != "" {
					f.last = m.id
				}
				f.mu.Unlock()
				m = said{}
			}
		}
	}()
}

// after returns in short what came while time went on: "cp-1", "-cp-1" for one that was
// removed, "reset", "synced".
func (f *feed) after(d time.Duration) (short []string) {
	f.t.Helper()
	for _, m := range f.all(d) {
		switch m.event {
		case "machine":
			short = append(short, m.machine(f.t).Name)
		case "removed":
			short = append(short, "-"+m.machine(f.t).Name)
		default:
			short = append(short, m.event)
		}
	}
	return short
}

func (f *feed) all(d time.Duration) []said {
	time.Sleep(d)
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	got := f.got
	f.got = nil
	return got
}

func (m said) machine(t *testing.T) (out api.Machine) {
	t.Helper()
	if err := json.Unmarshal([]byte(m.data), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func (f *feed) lastID() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

func (f *feed) want(d time.Duration, want ...string) {
	f.t.Helper()
	if got := f.after(d); !slices.Equal(got, want) {
		f.t.Errorf("told %q, want %q", got, want)
	}
}

func (r *rig) record(t *testing.T, e inventory.Event) {
	t.Helper()
	if _, err := r.keeper.Record(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) label(value string, names ...string) {
	r.t.Helper()
	for _, name := range names {
		r.must(200, "PATCH", "/api/v1/machines/"+name, fmt.Sprintf(`{"labels":{"x":%q}}`, value), nil)
	}
}

// soon is when a change is told at the latest, and much is when all has settled.
const (
	soon = 1100 * time.Millisecond
	much = 15 * time.Second
)

func bubble(t *testing.T, cfg Config, f func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := manyMachines(t, cfg)
		f(t, r)
	})
}

func manyMachines(t *testing.T, cfg Config) *rig {
	r := seed(t, cfg)
	r.must(201, "POST", "/api/v1/clusters", other, nil)
	r.must(201, "POST", "/api/v1/machines", wb, nil)
	r.must(201, "POST", "/api/v1/machines", spare, nil)
	return r
}

func TestWatchMachines(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		f := r.watch(t, root, "")
		first := f.all(0)
		if len(first) != 4 || first[0].id != "0" || first[3].event != "synced" || first[3].id == "0" || first[3].data != "{}" {
			t.Fatalf("%+v", first)
		}
		var one api.Machine
		r.must(200, "GET", "/api/v1/machines/cp-1", "", &one)
		if got := mustJSON(t, first[0].machine(t)); got != mustJSON(t, one) {
			t.Errorf("%s\nis not\n%s", got, mustJSON(t, one))
		}
		f.want(much)

		r.label("1", "cp-1")
		f.want(time.Millisecond, "cp-1")
		r.label("2", "cp-1", "w-b")
		r.label("3", "cp-1") // at once after it
		got := f.all(soon)
		if len(got) != 2 || got[0].machine(t).Labels["x"] != "3" {
			t.Errorf("%+v", got)
		}
		r.must(204, "DELETE", "/api/v1/machines/spare", "", nil)
		f.want(soon, "-spare")
		r.must(201, "POST", "/api/v1/machines", spare, nil)
		f.want(time.Millisecond, "spare")
		r.must(201, "POST", "/api/v1/machines", `{"name":"soon-gone","macs":["52-54-00-00-00-0e"],"role":"worker"}`, nil)
		r.must(204, "DELETE", "/api/v1/machines/soon-gone", "", nil)
		f.want(much)

		// What is only observed, and what no event tells of.
		r.record(t, inventory.Event{Kind: inventory.Solicited, Machine: "cp-1", MAC: "52:54:00:12:34:56", Client: inventory.FirmwarePXE, XID: 1})
		f.want(soon, "cp-1")
		r.record(t, inventory.Event{Kind: inventory.APIAnswered, Machine: "cp-1", Stage: inventory.StageRunning, Ready: true})
		f.want(soon, "cp-1")
		time.Sleep(2 * time.Minute)
		f.all(0)
		r.record(t, inventory.Event{Kind: inventory.APIAnswered, Machine: "cp-1", Stage: inventory.StageRunning, Ready: true})
		f.want(soon, "cp-1")

		// What all machines of a cluster show: that there is an image for them.
		time.Sleep(much)
		f.all(0)
		if err := r.keeper.PutImage(t.Context(), &inventory.Image{Version: "v1.13.6", Arch: inventory.AMD64, Kernel: inventory.Blob{SHA256: sha("k"), Size: 1}, Initramfs: inventory.Blob{SHA256: sha("i"), Size: 1}}); err != nil {
			t.Fatal(err)
		}
		if got := f.after(2 * soon); !slices.Contains(got, "w-b") {
			t.Errorf("told %q when there was an image", got)
		}

		f.end()
		if r.hub != nil {
			t.Error("the hub goes on without a stream")
		}
		again := r.watch(t, root, "")
		again.want(0, "cp-1", "spare", "w-b", "synced")
	})
}

// TestWatchMachinesPace: a machine that changes all the time is told of twice a second.
func TestWatchMachinesPace(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		f := r.watch(t, root, "")
		f.all(much)
		for i := range 200 {
			r.label(fmt.Sprint(i), "cp-1")
			time.Sleep(49 * time.Millisecond)
		}
		if got := f.all(2 * soon); len(got) > 21 || len(got) < 10 || // times that it was told
			got[len(got)-1].machine(t).Labels["x"] != "199" {
			t.Errorf("in 10 s it was told %d times: %+v", len(got), got)
		}
	})
}

func TestWatchMachinesFilter(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		labelled, registered, found := r.watch(t, root, "?label=x=1"), r.watch(t, root, "?phase=registered&cluster=rack1"), r.watch(t, root, "?q=w-&role=worker")
		labelled.want(0, "synced")
		registered.want(0, "cp-1", "synced")
		found.want(0, "w-b", "synced")
		r.label("1", "w-b", "cp-1")
		labelled.want(soon, "cp-1", "w-b")
		r.label("2", "w-b")
		labelled.want(soon, "-w-b")
		r.label("3", "w-b")
		labelled.want(much)
		registered.want(0, "cp-1")
		found.want(0, "w-b", "w-b", "w-b")
		r.record(t, inventory.Event{Kind: inventory.APIAnswered, Machine: "cp-1", Stage: inventory.StageBooting})
		registered.want(soon, "-cp-1")
		labelled.want(0, "cp-1")
	})
}

var limitedTo1 = &Principal{Name: "limited", Via: ViaToken, Role: read, Clusters: []string{"rack1"}}

func TestWatchMachinesScope(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		f := r.watch(t, limitedTo1, "")
		f.want(0, "cp-1", "synced")
		r.label("1", "w-b", "spare")
		f.want(much)
		r.must(200, "PATCH", "/api/v1/machines/spare", `{"cluster":"rack1"}`, nil)
		f.want(soon, "spare")
		r.must(200, "PATCH", "/api/v1/machines/spare", `{"cluster":"other"}`, nil)
		f.want(soon, "-spare")
		r.must(204, "DELETE", "/api/v1/machines/spare", "", nil)
		f.want(much)
	})
}

// TestWatchMachinesResumes: what changed while a client was away, and nothing that it may
// not know.
func TestWatchMachinesResumes(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		r.must(201, "POST", "/api/v1/machines", `{"name":"w-1","macs":["52-54-00-00-00-01"],"role":"worker","cluster":"rack1"}`, nil)
		r.must(201, "POST", "/api/v1/machines", `{"name":"w-2","macs":["52-54-00-00-00-02"],"role":"worker","cluster":"rack1"}`, nil)
		leave := func(p *Principal, query string) func(...string) {
			f := r.watch(t, p, query)
			f.all(much)
			f.end()
			return func(want ...string) {
				t.Helper()
				for _, again := range []*feed{r.watch(t, p, query, "Last-Event-ID", f.lastID()), r.watch(t, p, "?after="+f.lastID()+strings.Replace(query, "?", "&", 1))} {
					again.want(0, want...)
					again.end()
				}
			}
		}
		nothing := leave(root, "")
		nothing("synced")
		everywhere, some, theirs, many := leave(root, ""), leave(root, "?role=controlplane"), leave(limitedTo1, ""), leave(limitedTo1, "?label=x=1")
		r.label("1", "w-b", "w-2")
		r.must(204, "DELETE", "/api/v1/machines/spare", "", nil)                  // never theirs
		r.must(200, "PATCH", "/api/v1/machines/w-1", `{"cluster":"other"}`, nil)  // theirs until then
		r.must(200, "PATCH", "/api/v1/machines/w-2", `{"labels":{"x":"2"}}`, nil) // does not match, and is theirs
		r.must(204, "DELETE", "/api/v1/machines/w-1", "", nil)                    // foreign by then
		r.must(201, "POST", "/api/v1/machines", `{"name":"w-1","macs":["52-54-00-00-00-01"],"role":"worker","cluster":"other"}`, nil)
		everywhere("w-1", "w-2", "w-b", "-spare", "synced")
		some("-w-1", "-w-2", "-w-b", "-spare", "synced")
		theirs("w-2", "-w-1", "synced")
		many("-w-2", "-w-1", "synced")

		// What a machine shows of its image, and of its cluster.
		shows := leave(root, "")
		if err := r.keeper.PutImage(t.Context(), &inventory.Image{Version: "v1.12.0", Arch: inventory.AMD64}); err != nil {
			t.Fatal(err)
		}
		shows("cp-1", "w-1", "w-2", "w-b", "synced")

		// An event that no longer is, or never was.
		for _, id := range []string{"0", "99999", "9999999999999999999"} {
			again := r.watch(t, root, "", "Last-Event-ID", id)
			again.want(0, "reset", "cp-1", "w-1", "w-2", "w-b", "synced")
			r.label(id, "w-2")
			again.want(soon, "w-2")
		}
		r.store.mu.Lock()
		r.store.gone = 7
		r.store.mu.Unlock()
		r.watch(t, root, "?after=8").want(0, "cp-1", "w-1", "w-2", "w-b", "-spare", "synced")
		r.watch(t, root, "?after=7").want(0, "reset", "cp-1", "w-1", "w-2", "w-b", "synced")
	})
}

// TestWatchMachinesResumesSlowly: what is removed while the beginning is still being read.
func TestWatchMachinesResumesSlowly(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		for i := range 3 * chunk {
			r.must(201, "POST", "/api/v1/machines", fmt.Sprintf(`{"name":"m-%03d","macs":["52-54-00-01-00-%02x"],"role":"worker","cluster":"rack1"}`, i, i), nil)
		}
		for _, p := range []*Principal{root, limitedTo1} {
			first := r.watch(t, p, "")
			first.all(much)
			first.end()
			slow := r.open(t, p, "", "Last-Event-ID", first.lastID())
			synctest.Wait() // it has begun, and nobody reads
			last := fmt.Sprintf("m-%03d", 3*chunk-1)
			r.must(204, "DELETE", "/api/v1/machines/"+last, "", nil)
			r.must(204, "DELETE", "/api/v1/machines/spare", "", nil) // in no cluster
			slow.read()
			if got := fmt.Sprint(slow.all(much)); !strings.Contains(got, last) || strings.Contains(got, "spare") != (p == root) {
				t.Errorf("%s is told %s", p.Name, got)
			}
			slow.end()
			r.must(201, "POST", "/api/v1/machines", `{"name":"`+last+`","macs":["52-54-00-02-00-01"],"role":"worker","cluster":"rack1"}`, nil)
			r.must(201, "POST", "/api/v1/machines", `{"name":"spare","macs":["52-54-00-02-00-02"],"role":"worker"}`, nil)
		}
	})
}

// TestWatchMachinesResumesWithoutEvents: what changed and no event tells of.
func TestWatchMachinesResumesWithoutEvents(t *testing.T) {
	transfers := &fakeTransfers{}
	bubble(t, Config{Transfers: transfers}, func(t *testing.T, r *rig) {
		r.record(t, inventory.Event{Kind: inventory.APIAnswered, Machine: "cp-1", Stage: inventory.StageRunning, Ready: true})
		r.record(t, inventory.Event{Kind: inventory.APIAnswered, Machine: "spare", Stage: inventory.StageRunning, Ready: true})
		r.record(t, inventory.Event{Kind: inventory.ScriptServed, Machine: "w-b", MAC: "52:54:00:00:00:0b", Plan: inventory.Install})
		transfers.set(map[string]inventory.Transfer{"w-b": {Step: "kernel", Size: 9}})
		time.Sleep(5 * time.Minute)
		r.logEvent("", "the place to go on from")
		f := r.watch(t, root, "")
		f.all(much)
		f.end()
		again := r.watch(t, root, "", "Last-Event-ID", f.lastID())
		again.want(0, "w-b", "synced")
		again.end()
		transfers.set(nil) // it broke off
		r.record(t, inventory.Event{Kind: inventory.APIAnswered, Machine: "spare", Stage: inventory.StageRunning, Ready: true})
		time.Sleep(6 * time.Minute)
		again = r.watch(t, root, "", "Last-Event-ID", f.lastID())
		got := again.all(0)
		if len(got) != 4 || got[0].machine(t).Phase.Phase != "stalled" || got[1].machine(t).Name != "spare" || got[2].machine(t).Progress != nil {
			t.Errorf("%+v", got)
		}
	})
}

// TestWatchMachinesByTheClock: a machine that stalls is told of although nothing happened.
func TestWatchMachinesByTheClock(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		r.record(t, inventory.Event{Kind: inventory.APIAnswered, Machine: "cp-1", Stage: inventory.StageBooting})
		f := r.watch(t, root, "")
		f.all(much)
		f.want(20*time.Minute - much - time.Second)
		got := f.all(turnPause + 3*time.Second)
		if len(got) != 1 || got[0].machine(t).Phase.Phase != "stalled" || got[0].machine(t).Phase.StalledIn != "booting" {
			t.Errorf("%+v", got)
		}
		f.want(time.Hour)
	})
}

func TestWatchMachinesProgress(t *testing.T) {
	transfers := &fakeTransfers{}
	bubble(t, Config{Transfers: transfers}, func(t *testing.T, r *rig) {
		f := r.watch(t, root, "")
		f.all(much)
		for _, sent := range []int64{0, 4, 8} {
			transfers.set(map[string]inventory.Transfer{"cp-1": {Step: "kernel", Sent: sent, Size: 9}})
			got := f.all(2 * time.Second)
			if len(got) != 1 || got[0].machine(t).Progress == nil || got[0].machine(t).Progress.Sent != sent {
				t.Errorf("%d were sent, and it was told %+v", sent, got)
			}
		}
		f.want(much) // it goes no further
		transfers.set(nil)
		if got := f.all(2 * time.Second); len(got) != 1 || got[0].machine(t).Progress != nil {
			t.Errorf("it ended, and it was told %+v", got)
		}
	})
}

// TestWatchMachinesSlowly: who does not read holds nobody up, costs no more than the names,
// and reads what is true then.
func TestWatchMachinesSlowly(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		slow, quick := r.open(t, root, ""), r.watch(t, root, "")
		quick.want(0, "cp-1", "spare", "w-b", "synced")
		for i := range 50 {
			r.label(fmt.Sprint(i), "cp-1", "w-b")
			quick.want(soon, "cp-1", "w-b")
		}
		r.must(204, "DELETE", "/api/v1/machines/w-b", "", nil)
		quick.want(soon, "-w-b")
		r.hub.mu.Lock()
		for st := range r.hub.streams {
			if len(st.pending) > 3 {
				t.Errorf("%d names wait for a stream", len(st.pending))
			}
		}
		r.hub.mu.Unlock()
		slow.read()
		// It was about to write the beginning.
		got := map[string]string{}
		for _, m := range slow.all(soon) {
			switch m.event {
			case "machine":
				got[m.machine(t).Name] = m.machine(t).Labels["x"]
			case "removed":
				delete(got, m.machine(t).Name)
			}
		}
		if len(got) != 2 || got["cp-1"] != "49" {
			t.Errorf("it knows %v", got)
		}
	})
}

// TestWatchMachinesEnds: with the login, and no more than a number of them at a time.
func TestWatchMachinesEnds(t *testing.T) {
	bubble(t, Config{MaxWatchers: 2}, func(t *testing.T, r *rig) {
		var bad atomic.Bool
		revoked := &Principal{Name: "ci", Via: ViaToken, Role: read, stands: func(context.Context, time.Time) bool { return !bad.Load() }}
		f, other := r.watch(t, revoked, ""), r.watch(t, root, "")
		f.all(soon)
		if third := r.watch(t, root, ""); third.status != http.StatusServiceUnavailable {
			t.Errorf("a third stream got %d", third.status)
		}
		bad.Store(true)
		time.Sleep(soon)
		r.label("1", "cp-1")
		f.want(soon)
		other.want(0, "cp-1", "spare", "w-b", "synced", "cp-1")
		if third := r.watch(t, &Principal{Name: "ada", Via: ViaToken, Role: read}, ""); third.status != http.StatusOK {
			t.Errorf("the place is not free: %d", third.status)
		}
	})
}

// TestWatchMachinesRestart: ids are of the log, so another daemon goes on after them.
func TestWatchMachinesRestart(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		f := r.watch(t, root, "")
		f.all(much)
		r.label("1", "cp-1")
		f.all(much)
		f.end()
		r.label("2", "w-b")
		r.Server = New(Config{Version: "v1"}, r.keeper, r.talos, &r.guards, r.blobs, r.log)
		r.watch(t, root, "", "Last-Event-ID", f.lastID()).want(0, "w-b", "synced")
	})
}
