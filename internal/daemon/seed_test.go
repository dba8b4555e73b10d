package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
)

// operator is the API as root calls it.
func (l *lab) operator(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.New("unix://"+l.cfg.Socket, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestSeeds: racks that were started by other means than our network boot come up from
// the same inventory, each with byte for byte what its config URL gives.
func TestSeeds(t *testing.T) {
	ordered := func(t *testing.T, l *lab, m *racktest.Machine) api.Seed {
		t.Helper()
		s, err := client.Answer[api.Seed](l.operator(t).SeedMachine(t.Context(), m.Name(), api.SeedOrder{}))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	made := func(t *testing.T, l *lab, m *racktest.Machine, format string) []byte {
		t.Helper()
		image, err := client.Answer[[]byte](l.operator(t).MakeMachineIso(t.Context(), m.Name(), api.ISOOrder{Format: format}))
		if err != nil {
			t.Fatal(err)
		}
		return image
	}
	for _, way := range []struct {
		name, medium string
		slaac        string
		by           inventory.Channel
		give         func(t *testing.T, l *lab, m *racktest.Machine)
	}{
		{"metal-iso handed over", racktest.MetalISOLine, "", inventory.ChannelISO, func(t *testing.T, l *lab, m *racktest.Machine) {
			m.Plug(made(t, l, m, api.ISONoCloud), made(t, l, m, api.ISOMetal))
		}},
		{"metal-iso as virtual media", racktest.MetalISOLine, "", inventory.ChannelISO, func(t *testing.T, l *lab, m *racktest.Machine) {
			m.Plug(inPieces(t, ordered(t, l, m).MetalISO))
		}},
		{"cidata handed over", racktest.NoCloudLine, "", inventory.ChannelISO, func(t *testing.T, l *lab, m *racktest.Machine) { m.Plug(made(t, l, m, api.ISONoCloud)) }},
		{"cidata as virtual media", racktest.NoCloudLine, "", inventory.ChannelISO, func(t *testing.T, l *lab, m *racktest.Machine) {
			m.Plug(inPieces(t, ordered(t, l, m).NoCloudISO))
		}},
		{"NoCloud by HTTP", racktest.NoCloudLine, "2001:db8:1::/64", inventory.ChannelNoCloud, func(t *testing.T, l *lab, m *racktest.Machine) { m.SetSerial(ordered(t, l, m).Serial) }},
	} {
		t.Run(way.name, func(t *testing.T) {
			l := newLab(t)
			o := racktest.RackOptions{Medium: way.medium}
			if way.slaac != "" {
				o.SLAAC = netip.MustParsePrefix(way.slaac)
			}
			r := l.rack(t, o)
			proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
			k, _ := l.start(t, l.open(t))
			cluster, _, err := k.Cluster(t.Context(), "lab")
			if err != nil {
				t.Fatal(err)
			}
			cluster.Delivery = inventory.OverHTTP
			if _, err := k.PutCluster(t.Context(), cluster, cluster.Rev); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{}
			for _, m := range r.Machines {
				v, err := k.Machine(t.Context(), m.Name())
				if err != nil {
					t.Fatal(err)
				}
				cfg, err := l.daemon.configs.config(t.Context(), v)
				if err != nil {
					t.Fatal(err)
				}
				sum := sha256.Sum256(cfg.Bytes())
				want[m.Name()] = hex.EncodeToString(sum[:])
				way.give(t, l, m)
			}
			runRack(t, r)
			verify(t, k, r)
			views, err := k.Machines(t.Context(), "", 0) // as verify looks: on disk, where a kept view may be a moment behind
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range r.Machines {
				v := views[slices.IndexFunc(views, func(v inventory.View) bool { return v.Machine.Name == m.Name() })]
				if got := m.Loaded().Config; got != want[m.Name()] || v.Facts.ConfigHash != got {
					t.Errorf("%s read a config of %s, its URL gives %s, and it is known to have %s", m.Name(), got, want[m.Name()], v.Facts.ConfigHash)
				}
				b := v.Facts.Current()
				if b.Client != inventory.Seed || b.ConfigBy != way.by || b.Ready.IsZero() || v.Facts.Alarm() != "" {
					t.Errorf("%s: its boot by %s has its config by %q, ready at %v, alarm %q", m.Name(), b.Client, b.ConfigBy, b.Ready, v.Facts.Alarm())
				}
				if m.Disk().Installs() != 1 {
					t.Errorf("%s was installed %d times", m.Name(), m.Disk().Installs())
				}
			}
			if way.by == inventory.ChannelNoCloud {
				readsOnInstalled(t, r)
			}
		})
	}
}

// readsOnInstalled: an installed machine reads NoCloud's files at each start. It is told
// that there are none, and asks each once.
func readsOnInstalled(t *testing.T, r *racktest.Rack) {
	t.Helper()
	m := r.Machines[len(r.Machines)-1]
	m.PowerOff()
	before := len(m.Timeline().Entries())
	ctx, cancel := context.WithTimeout(context.Background(), within)
	t.Cleanup(cancel)
	if out, err := m.PowerOn(ctx); err != nil || out != racktest.Ready {
		t.Fatalf("it comes up as %q: %v", out, err)
	}
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		for _, e := range m.Timeline().Entries()[before:] {
			if !strings.Contains(e.Note, "NoCloud on an installed system") {
				continue
			}
			if !strings.Contains(e.Note, "meta-data false, network-config false, user-data false, no config source") {
				t.Errorf("it was told %q", e.Note)
			}
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatal("it never asked")
		}
	}
}

// inPieces reads an image as a BMC does: its size, and then ranges of it.
func inPieces(t *testing.T, url string) []byte {
	t.Helper()
	ask := func(method, pieces string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if pieces != "" {
			req.Header.Set("Range", pieces)
		}
		tr := &http.Transport{DisableKeepAlives: true}
		res, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = res.Body.Close() })
		return res
	}
	size := ask(http.MethodHead, "").ContentLength
	var image []byte
	for from := int64(0); from < size; from += 16384 {
		res := ask(http.MethodGet, fmt.Sprintf("bytes=%d-%d", from, min(from+16384, size)-1))
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusPartialContent {
			t.Fatalf("from %d: %s, %v", from, res.Status, err)
		}
		image = append(image, b...)
	}
	if size <= 0 || int64(len(image)) != size {
		t.Fatalf("%d bytes of %d", len(image), size)
	}
	return image
}
