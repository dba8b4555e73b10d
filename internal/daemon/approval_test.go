package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
)

// TestApproval is the rack with a person: each machine shows a code and gets its config
// once that was approved. One that is denied shows another code and is approved then; a
// restart of the daemon loses neither a wait nor a word.
func TestApproval(t *testing.T) {
	l := newLab(t)
	store := l.open(t)
	r := l.rack(t, racktest.RackOptions{})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	k, stop := l.start(t, store)
	cl, _, err := k.Cluster(t.Context(), "lab")
	if err != nil {
		t.Fatal(err)
	}
	cl.Approval = inventory.ApprovalRequired
	if _, err := k.PutCluster(t.Context(), cl, cl.Rev); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	t.Cleanup(cancel)
	ran := make(chan error, 1)
	go func() { ran <- r.Run(ctx) }()

	// No machine has its config, and each waits with a code.
	codes := map[string]string{}
	pending := func() map[string]string {
		t.Helper()
		flows, err := k.Approvals(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, f := range flows {
			out[f.Machine] = f.UserCode
		}
		return out
	}
	await(t, k, func() string {
		if codes = pending(); len(codes) < planes+workers {
			return fmt.Sprintf("%d machines wait to be approved", len(codes))
		}
		return ""
	})
	for _, m := range r.Machines {
		v, err := k.Machine(t.Context(), m.Name())
		if err != nil {
			t.Fatal(err)
		}
		if b := v.Facts.Current(); !b.Config.IsZero() {
			t.Errorf("%s has its config", m.Name())
		}
		if s := inventory.DefaultPatience().PhaseOf(v, time.Now()); s.Phase != inventory.PhaseConfiguring || !strings.Contains(s.Reason, "waits to be approved") {
			t.Errorf("%s is %+v", m.Name(), s)
		}
	}

	// Its URL alone opens nothing, and neither does a made-up access token.
	v, err := k.Machine(t.Context(), "cp-1")
	if err != nil {
		t.Fatal(err)
	}
	url, client := l.configURL(v), l.client()
	for _, header := range []string{"", "Bearer x", "Basic " + codes["cp-1"]} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", header)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusUnauthorized {
			t.Errorf("Authorization %q: %d", header, res.StatusCode)
		}
	}

	decide := func(k *inventory.Keeper, code string, approve bool) {
		t.Helper()
		if _, err := k.Decide(t.Context(), code, approve, "ada"); err != nil {
			t.Errorf("%s: %v", code, err)
		}
	}
	decide(k, strings.ToLower(strings.ReplaceAll(codes["w-1"], "-", " ")), false)
	decide(k, codes["cp-1"], true)
	decide(k, codes["cp-1"], true) // clicked twice
	if _, err := k.Decide(t.Context(), codes["cp-1"], false, "ada"); !errors.Is(err, inventory.ErrRefused) {
		t.Errorf("approved and then denied: %v", err)
	}
	if _, err := k.Decide(t.Context(), "BBBB-BBBB", true, "ada"); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("a code that nobody shows: %v", err)
	}
	// What was said before a restart counts after it, and so does what was asked.
	stop()
	store.Close()
	k, _ = l.start(t, l.open(t))
	for _, name := range []string{"cp-2", "cp-3", "w-2"} {
		decide(k, codes[name], true)
	}
	await(t, k, func() string {
		code := pending()["w-1"]
		if code == "" || code == codes["w-1"] {
			return "w-1 shows no other code"
		}
		if _, err := k.Decide(t.Context(), code, true, "ada"); err != nil {
			return err.Error() // a slow machine may show the next one by now
		}
		codes["w-1"] = code
		return ""
	})
	select {
	case err := <-ran:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(within):
		t.Fatal("the rack does not come up")
	}
	verify(t, k, r)
	for _, m := range r.Machines {
		if shown := m.Loaded().UserCode; shown != codes[m.Name()] {
			t.Errorf("the console of %s shows %q, and %q was approved", m.Name(), shown, codes[m.Name()])
		}
	}
	if v, err := k.Machine(t.Context(), "w-1"); err != nil || v.Facts.Alarm() != "" {
		t.Errorf("alarm %q, %v", v.Facts.Alarm(), err)
	}
}
