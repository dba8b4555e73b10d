package httpconfig

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// peeking is a ResponseWriter that calls seen before each write.
type peeking struct {
	*httptest.ResponseRecorder
	seen func()
}

func (p peeking) Write(b []byte) (int, error) {
	p.seen()
	return p.ResponseRecorder.Write(b)
}

// bigKernel gives the machine a kernel of two pieces and a half.
func (r *rack) bigKernel(t *testing.T) int64 {
	t.Helper()
	big := bytes.Repeat([]byte("0123456789abcdef"), (2*piece+piece/2)/16)
	if err := os.WriteFile(r.blobs.dir+"/big", big, 0o600); err != nil {
		t.Fatal(err)
	}
	image := r.keeper.images[1]
	image.Kernel = inventory.Blob{SHA256: "big", Size: int64(len(big))}
	r.keeper.view.Image, r.keeper.images[1] = &image, image
	return image.Kernel.Size
}

// watched asks for a file and returns what was under way to cp-1 meanwhile, each state
// once.
func (r *rack) watched(t *testing.T, method, target string, peer netip.Addr, headers ...string) (seen []inventory.Transfer) {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), method, target, nil)
	req.RemoteAddr = netip.AddrPortFrom(peer, 1234).String()
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	r.Handler().ServeHTTP(peeking{httptest.NewRecorder(), func() {
		now, ok := r.Transfer("cp-1")
		if ok != (r.Transfers()["cp-1"] == now && len(r.Transfers()) == 1) {
			t.Errorf("%+v and %+v", now, r.Transfers())
		}
		if ok && (len(seen) == 0 || seen[len(seen)-1] != now) {
			seen = append(seen, now)
		}
	}}, req)
	if len(r.underway.of) != 0 {
		t.Errorf("it has ended, and there is %v", r.Transfers())
	}
	return seen
}

func TestTransfersUnderWay(t *testing.T) {
	const query = "?mac=52:54:00:00:00:02&boot=7"
	for _, c := range []struct {
		name, method, target string
		peer                 netip.Addr
		headers              []string
		step                 string
		sent                 []int64
	}{
		{"kernel", "GET", imagePath + "kernel" + query, stable, nil, "kernel", []int64{0, piece, 2 * piece}},
		{"initramfs", "GET", imagePath + "initramfs" + query, leased, nil, "initramfs", []int64{0}},
		{"a range counts from its start", "GET", imagePath + "kernel" + query, stable, []string{"Range", "bytes=1000-"}, "kernel", []int64{1000, 1000 + piece, 1000 + 2*piece}},
		{"HEAD", "HEAD", imagePath + "kernel" + query, stable, nil, "", nil},
		{"another peer", "GET", imagePath + "kernel" + query, alien, nil, "", nil},
		{"another boot", "GET", imagePath + "kernel?mac=52:54:00:00:00:02&boot=6", stable, nil, "", nil},
		{"no boot", "GET", imagePath + "kernel", stable, nil, "", nil},
		{"another machine", "GET", imagePath + "kernel?mac=52:54:00:00:00:99&boot=7", stable, nil, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRack(t)
			size := r.bigKernel(t)
			if c.step == "initramfs" {
				size = 9
			}
			r.boots(bootNow(7, token))
			start := time.Now()
			var sent []int64
			for _, now := range r.watched(t, c.method, c.target, c.peer, c.headers...) {
				if now.Step != c.step || now.Size != size || now.Started.Before(start) {
					t.Errorf("%+v", now)
				}
				if len(sent) == 0 || sent[len(sent)-1] != now.Sent {
					sent = append(sent, now.Sent)
				}
			}
			if !slices.Equal(sent, c.sent) {
				t.Errorf("sent %v, want %v", sent, c.sent)
			}
		})
	}
}

// TestNewestTransferCounts: of two at a time, and the older one again when that ended.
func TestNewestTransferCounts(t *testing.T) {
	r := newRack(t)
	r.boots(bootNow(7, token))
	kernel := httptest.NewRequestWithContext(t.Context(), http.MethodGet, imagePath+"kernel?mac=52:54:00:00:00:01&boot=7", nil)
	kernel.RemoteAddr = netip.AddrPortFrom(stable, 1).String()
	asked := false
	r.Handler().ServeHTTP(peeking{httptest.NewRecorder(), func() {
		if asked {
			return
		}
		asked = true
		ranges := &transfer{}
		ranges.sent.Store(200) // with what is between them
		end := r.underway.begin("cp-1", &download{step: "initramfs", size: 9, w: ranges})
		if now, _ := r.Transfer("cp-1"); now.Step != "initramfs" || now.Sent != 9 {
			t.Errorf("%+v", now)
		}
		end()
		if now, _ := r.Transfer("cp-1"); now.Step != "kernel" {
			t.Errorf("%+v", now)
		}
	}}, kernel)
	if now, ok := r.Transfer("cp-1"); ok || !asked {
		t.Errorf("%+v", now)
	}
}
