package inventory_test

import (
	"slices"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// TestWatchViews: all that changes what is shown of a machine, and nothing else.
func TestWatchViews(t *testing.T) {
	k, _ := newKeeper(t)
	wake, take, stop := k.WatchViews()
	defer stop()
	record := func(e inventory.Event) func() error {
		return func() error {
			_, err := k.Record(t.Context(), e)
			return err
		}
	}
	var m *inventory.Machine
	for _, c := range []struct {
		name string
		do   func() error
		want []string
		all  bool
	}{
		{"a cluster", func() (err error) {
			_, err = k.CreateCluster(t.Context(), cluster("prod"), []byte("secret"))
			return err
		}, nil, true},
		{"registered", func() (err error) {
			m, err = k.PutMachine(t.Context(), &inventory.Machine{Name: "w-1", Role: inventory.Worker, Cluster: "prod", MACs: []inventory.MAC{"52:54:00:00:00:01"}}, 0)
			return err
		}, []string{"w-1"}, false},
		{"seen", record(inventory.Event{Kind: inventory.Solicited, MAC: "52:54:00:00:00:01", Client: inventory.FirmwarePXE, XID: 1}), []string{"w-1"}, false},
		{"written down", func() error { return k.Flush(t.Context()) }, []string{"w-1"}, false},
		{"its API", record(inventory.Event{Kind: inventory.APIAnswered, Machine: "w-1", Stage: inventory.StageBooting}), []string{"w-1"}, false},
		{"its API, and nothing new", record(inventory.Event{Kind: inventory.APIAnswered, Machine: "w-1", Stage: inventory.StageBooting}), nil, false},
		{"a stranger", record(inventory.Event{Kind: inventory.Solicited, MAC: "52:54:00:00:00:09"}), nil, false},
		{"an image", func() error {
			return k.PutImage(t.Context(), &inventory.Image{Version: "v1.13.6", Arch: inventory.AMD64})
		}, nil, true},
		{"a token", func() error {
			_, _, err := k.CreateToken(t.Context(), inventory.Token{Name: "ci", Access: inventory.AccessRead})
			return err
		}, nil, false},
		{"removed", func() error { return k.DeleteMachine(t.Context(), "w-1", m.Rev) }, []string{"w-1"}, false},
	} {
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		woken := false
		select {
		case <-wake:
			woken = true
		default:
		}
		names, all := take()
		if !slices.Equal(names, c.want) || all != c.all || woken != (len(c.want) > 0 || c.all) {
			t.Errorf("%s: woken %t with %v, all %t; want %v, %t", c.name, woken, names, all, c.want, c.all)
		}
	}
}

// TestLeft: the log says which cluster a machine was of when it left that.
func TestLeft(t *testing.T) {
	k, _ := newKeeper(t)
	for _, name := range []string{"a", "b"} {
		if _, err := k.CreateCluster(t.Context(), cluster(name), []byte("secret")); err != nil {
			t.Fatal(err)
		}
	}
	m := &inventory.Machine{Name: "w-1", Role: inventory.Worker, MACs: []inventory.MAC{"52:54:00:00:00:01"}}
	for _, to := range []string{"", "a", "a", "b", ""} {
		m.Cluster = to
		stored, err := k.PutMachine(t.Context(), m, m.Rev)
		if err != nil {
			t.Fatal(err)
		}
		m = stored
	}
	m.Cluster = "b"
	stored, err := k.PutMachine(t.Context(), m, m.Rev)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.DeleteMachine(t.Context(), "w-1", stored.Rev); err != nil {
		t.Fatal(err)
	}
	events, err := k.EventsTail(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range events {
		left = append(left, e.Left)
	}
	if want := []string{"", "", "", "a", "b", "", "b"}; !slices.Equal(left, want) {
		t.Errorf("left %q, want %q", left, want)
	}
}
