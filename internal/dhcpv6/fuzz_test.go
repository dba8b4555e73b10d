package dhcpv6

import (
	"bytes"
	"math/rand/v2"
	"testing"

	lib "github.com/insomniacslk/dhcp/dhcpv6"
)

// seeds are the packets of the lab, on every way, at every step.
func seeds() [][]byte {
	var out [][]byte
	for _, c := range allClients {
		steps := [][]byte{c.first()}
		if c.ia != nil {
			for _, kind := range []byte{request, renew, rebind, confirm, release, decline} {
				steps = append(steps, c.with(kind, iaNA(c.iaid(), 0, stableAddr.String(), "2001:db8:9::1")))
			}
		}
		for _, m := range steps {
			for _, arrive := range paths {
				out = append(out, arrive(installMAC, m).data)
			}
		}
	}
	return out
}

// checkAny holds for any octets whatever: no panic, no answer or one that is
// well-formed, belongs to the question and breaks no rule of firmware's.
func checkAny(t testing.TB, data []byte) (answered bool) {
	in := direct(installMAC, data)
	before := bytes.Clone(data)
	out, err := newServer(t, newRack(), nil).handle(t.Context(), in)
	if !bytes.Equal(data, before) {
		t.Fatal("the packet was written to")
	}
	if err != nil {
		if out.data != nil {
			t.Fatalf("an answer and the error %v", err)
		}
		return false
	}
	if len(out.data) > 2*maxMessage {
		t.Fatalf("%d octets answered to %d", len(out.data), len(data))
	}
	// The library refuses odd client DUIDs, which are opaque and echoed as sent.
	if _, err := lib.FromBytes(data); err == nil {
		_, err = lib.FromBytes(out.data)
		if err != nil {
			t.Fatalf("the library cannot read the answer: %v\n%x", err, out.data)
		}
	}
	relays, inner, err := unwrap(data)
	if err != nil {
		t.Fatalf("answered what cannot be unwrapped: %v", err)
	}
	b := out.data
	for range relays {
		if b[0] != relayRep {
			t.Fatalf("fewer than %d Relay-replies", len(relays))
		}
		b, _ = value(splitOptions(t, b[34:]), 9)
	}
	if b[0] != advertise && b[0] != replied || !bytes.Equal(b[1:4], inner[1:4]) {
		t.Fatalf("message type %d and transaction %x answer transaction %x", b[0], b[1:4], inner[1:4])
	}
	opts := splitOptions(t, b[4:])
	if opts[len(opts)-1].code == 59 {
		t.Fatal("option 59 is the last one")
	}
	_, url := value(opts, 59)
	class, has := value(opts, 16)
	if has && (!url || !bytes.HasSuffix(class, []byte("HTTPClient"))) {
		t.Fatalf("option 16 is %q, URL %v", class, url)
	}
	if _, has := value(opts, 60); has {
		t.Fatal("option 60")
	}
	if id, ok := value(opts, 2); !ok || !bytes.Equal(id, serverDUID) {
		t.Fatalf("server DUID %x", id)
	}
	return true
}

// TestAnyPacket damages real packets: cuts, flips, doubles and splices.
func TestAnyPacket(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	all := seeds()
	answered := 0
	const rounds = 10_000
	for range rounds {
		b := bytes.Clone(all[rng.IntN(len(all))])
		for range rng.IntN(4) {
			switch i := rng.IntN(len(b)); rng.IntN(5) {
			case 0:
				b = b[:i+1]
			case 1:
				b[i] = byte(rng.Uint32())
			case 2:
				b[i] ^= 1 << rng.IntN(8)
			case 3:
				b = append(b[:i:i], b[i/2:]...)
			case 4:
				b = append(b[:i:i], all[rng.IntN(len(all))]...)
			}
		}
		if checkAny(t, b) {
			answered++
		}
	}
	// It would prove nothing if damage always silenced the server.
	if answered < rounds/10 || answered > rounds*9/10 {
		t.Errorf("%d of %d damaged packets were answered", answered, rounds)
	}
}

// TestEveryPrefix cuts each packet at every octet.
func TestEveryPrefix(t *testing.T) {
	for _, b := range seeds() {
		for n := range len(b) {
			checkAny(t, b[:n:n])
		}
		if !checkAny(t, b) && len(b) > 0 {
			if _, inner, err := unwrap(b); err != nil || inner[0] != confirm {
				t.Errorf("whole packet was not answered: %x", b)
			}
		}
	}
}

func FuzzHandle(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) { checkAny(t, data) })
}

// TestNeverForAnother: nothing a stranger sends moves a registered machine.
func TestNeverForAnother(t *testing.T) {
	for _, b := range seeds() {
		inv := newRack()
		if b[0] == forw {
			continue // a relay may speak for anyone
		}
		_, _ = newServer(t, inv, nil).handle(t.Context(), direct(strangeMAC, b))
		for _, e := range inv.events {
			if e.MAC != strangeMAC {
				t.Errorf("a packet from %s is recorded as %s's", strangeMAC, e.MAC)
			}
		}
		for _, a := range inv.leases {
			if a == stableAddr {
				t.Errorf("%s holds the address of %s", strangeMAC, installMAC)
			}
		}
	}
}

// BenchmarkHandle is one relayed Solicit without the cost of the inventory.
func BenchmarkHandle(b *testing.B) {
	s := newServer(b, newRack(), nil)
	in := viaRelay(throughRelay(strangeMAC, ovmfPXE.first()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.handle(b.Context(), in); err != nil {
			b.Fatal(err)
		}
	}
}
