package tftp

import (
	"bytes"
	"encoding/binary"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

func TestRefusals(t *testing.T) {
	k := newKeeper()
	at := serve(t, New(Config{}, tree(), k, zerolog.Nop()))
	for _, c := range []struct {
		packet []byte
		want   string
	}{
		{request(1, "amd64/none.efi", "octet"), "no such file"},
		{request(1, "amd64", "octet"), "no such file"},
		{request(1, "", "octet"), "not a file name"},
		{request(1, "/", "octet"), "not a file name"},
		{request(1, ".", "octet"), "not a file name"},
		{request(1, "../amd64/snponly.efi", "octet"), "not a file name"},
		{request(1, "amd64/../amd64/snponly.efi", "octet"), "not a file name"},
		{request(1, `amd64\snponly.efi`, "octet"), "not a file name"},
		{request(1, "amd64%2fsnponly.efi", "octet"), "no such file"},
		{request(1, "amd64/snponly.efi/", "octet"), "not a file name"},
		{request(1, strings.Repeat("a", 400), "octet"), "not a file name"},
		{request(2, "amd64/snponly.efi", "octet"), "does not support write requests"},
	} {
		p := newPeer(t, at)
		p.send(at, c.packet)
		got, _ := p.receive()
		if binary.BigEndian.Uint16(got) != 5 || !strings.Contains(string(got[4:]), c.want) {
			t.Errorf("%q is answered with %q, want the error %q", c.packet, got, c.want)
		}
	}
	if got := k.recorded(); len(got) != 0 {
		t.Errorf("recorded %v", got)
	}
}

// TestHostilePackets sends junk and then asks for a file: the server must be
// there. Among it are options that are as long as a packet, which an answer has
// no room for.
func TestHostilePackets(t *testing.T) {
	// A hostile transfer begins and is never acknowledged; keep it short.
	at := serve(t, New(Config{Timeout: 20 * time.Millisecond, Retries: 1}, tree(), newKeeper(), zerolog.Nop()))
	p := newPeer(t, at)
	zeros := strings.Repeat("0", 516)
	longest := func(blksize string) []byte { // as much as the server reads of a packet, and no NUL at the end
		b := request(1, "amd64/exact.efi", "", "blksize")
		return append(b, zeros[:516-len(b)-len(blksize)]+blksize...)
	}
	for _, b := range [][]byte{
		{}, {0}, {0, 1}, {0, 1, 0}, {0, 1, 0, 0}, {0, 2, 0, 0}, {0, 3, 0, 1}, {0, 4, 0, 0}, {0, 5, 0, 0, 0}, {0, 6, 0, 0, 0, 0}, {255, 255, 0, 0},
		bytes.Repeat([]byte{0}, 2000), bytes.Repeat([]byte{1}, 2000), bytes.Repeat([]byte{0, 1}, 300),
		request(1, "amd64/exact.efi"),
		request(1, "amd64/exact.efi", ""),
		request(1, "amd64/exact.efi", "octet", "blksize"),
		request(1, "amd64/exact.efi", "octet", "blksize", zeros[:470]+"512"),
		longest("512"), longest("0"), longest("1228"),
		request(1, "amd64/exact.efi", "octet", "tsize", zeros[:470]),
		request(1, "amd64/exact.efi", "octet", "tsize", strings.Repeat("9", 470)),
		request(1, "amd64/exact.efi", "octet", "blksize", "-1", "tsize", "-1", "timeout", "0"),
		request(1, "amd64/exact.efi", "octet", "blksize", "99999999999999999999"),
		request(1, "amd64/exact.efi", "netascii", "blksize", "8"),
	} {
		p.send(at, b)
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		b := make([]byte, r.IntN(600))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if len(b) > 1 {
			b[0], b[1] = 0, byte(r.IntN(8))
		}
		p.send(at, b)
	}
	var got bytes.Buffer
	for got.Len() == 0 { // until the hostile transfers to this address have run out
		c := client(t, at, 1228, true)
		c.SetTimeout(100 * time.Millisecond) // the flood may have filled the socket's buffer
		from, err := c.Receive("amd64/snponly.efi", "octet")
		if err == nil {
			_, err = from.WriteTo(&got)
		}
		if err != nil && !strings.Contains(err.Error(), "too many transfers") {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got.Bytes(), loader()) {
		t.Error("not the file")
	}
}

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		name   string
		config Config
		want   string
	}{
		{"to one address", Config{MaxPerPeer: 2}, "too many transfers to this address"},
		{"in all", Config{MaxTransfers: 2}, "too many transfers, ask again later"},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := serve(t, New(c.config, tree(), newKeeper(), zerolog.Nop()))
			var peers []*peer
			var froms []netip.AddrPort
			for range 2 { // two that have begun
				p := newPeer(t, at)
				p.send(at, request(1, "amd64/snponly.efi", "octet"))
				_, from := p.receive()
				peers, froms = append(peers, p), append(froms, from)
			}
			third := newPeer(t, at)
			third.send(at, request(1, "amd64/snponly.efi", "octet"))
			if got, _ := third.receive(); binary.BigEndian.Uint16(got) != 5 || !strings.Contains(string(got), c.want) {
				t.Errorf("the third is answered with %q, want %q", got[:min(len(got), 80)], c.want)
			}
			for i, p := range peers {
				p.send(froms[i], []byte{0, 5, 0, 0, 0})
			}
			wait(t, func() bool { // and again when they are gone
				from, err := client(t, at, 0, false).Receive("amd64/exact.efi", "octet")
				if err == nil {
					_, err = from.WriteTo(io.Discard)
				}
				return err == nil
			})
		})
	}
}

func TestCleanName(t *testing.T) {
	for in, want := range map[string]string{
		"amd64/snponly.efi": "amd64/snponly.efi", "/amd64/snponly.efi": "amd64/snponly.efi", "//a": "a", "a%2e%2e/b": "a%2e%2e/b", "...": "...",
		"": "", "/": "", ".": "", "..": "", "/..": "", "a/../b": "", "a//b": "", "a/": "", "./a": "", `a\b`: "", "a\x00": "", "a\n": "", "a\xff": "",
	} {
		got, ok := cleanName(in)
		if got != want || ok != (want != "") {
			t.Errorf("cleanName(%q) = %q, %v; want %q", in, got, ok, want)
		}
	}
}

func FuzzCleanName(f *testing.F) {
	for _, s := range []string{"amd64/snponly.efi", "/../etc/passwd", "//", `..\..`, "a/./b", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, ok := cleanName(s)
		if !ok {
			return
		}
		if again, ok := cleanName(name); !ok || again != name {
			t.Errorf("%q becomes %q, and that %q", s, name, again)
		}
		if !fs.ValidPath(name) || path.Clean("/root/"+name) != "/root/"+name {
			t.Errorf("%q becomes %q, which leaves the root", s, name)
		}
	})
}
