package dhcpv6

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// boot runs a client's Solicit and Request on a machine and returns the options
// of Advertise and Reply.
func boot(t *testing.T, s *Server, mac inventory.MAC, c client) (adv, rep []option) {
	t.Helper()
	out, err := s.handle(t.Context(), direct(mac, c.first()))
	if err != nil {
		t.Fatal(err)
	}
	kind, adv := inside(t, out.data)
	if kind != advertise {
		t.Fatalf("Solicit was answered with message type %d", kind)
	}
	ia, ok := value(adv, 3)
	if !ok {
		t.Fatal("Advertise without IA_NA")
	}
	out, err = s.handle(t.Context(), direct(mac, c.with(request, opt(3, ia))))
	if err != nil {
		t.Fatal(err)
	}
	kind, rep = inside(t, out.data)
	if kind != replied {
		t.Fatalf("Request was answered with message type %d", kind)
	}
	return adv, rep
}

// TestMeasured asserts, for Advertise and Reply alike, what firmware was
// measured to need and to choke on.
func TestMeasured(t *testing.T) {
	firmware := []client{ovmfPXE, ovmfHTTP, armPXE, armHTTP, ipxeSARR}
	for _, c := range firmware {
		t.Run(c.name, func(t *testing.T) {
			adv, rep := boot(t, newServer(t, newRack(), nil), installMAC, c)
			for name, opts := range map[string][]option{"Advertise": adv, "Reply": rep} {
				url, ok := value(opts, 59)
				if !ok {
					t.Fatalf("%s has no option 59: PXE stops with E99 or E21, HTTP with Remote boot cancelled", name)
				}
				if opts[len(opts)-1].code == 59 {
					t.Errorf("%s ends with option 59: EDK2 reads the URL to the next NUL", name)
				}
				if bytes.IndexByte(url, 0) >= 0 {
					t.Errorf("%s has a NUL in its URL %q", name, url)
				}
				if _, ok := value(opts, 60); ok {
					t.Errorf("%s has option 60: PXE stops with E53", name)
				}
				if _, ok := value(opts, 12); ok {
					t.Errorf("%s has option 12, which nobody uses", name)
				}
				class, has := value(opts, 16)
				switch c.name {
				case "ovmf-http", "arm64-http":
					want := append([]byte{0, 0, 1, 0x57, 0, 10}, "HTTPClient"...)
					if !bytes.Equal(class, want) {
						t.Errorf("%s has class %x, not %x: HTTP boot is cancelled", name, class, want)
					}
					if !bytes.HasPrefix(url, []byte("http://")) {
						t.Errorf("%s gives HTTP boot %q", name, url)
					}
				case "ovmf-pxe", "arm64-pxe":
					if has {
						t.Errorf("%s has class %q: PXE stops with E16", name, class)
					}
					if !bytes.HasPrefix(url, []byte("tftp://[")) {
						t.Errorf("%s gives PXE %q: it stops with E53", name, url)
					}
				case "ipxe":
					if has {
						t.Errorf("%s has class %q, which iPXE does not need", name, class)
					}
					if !bytes.Contains(url, []byte("boot.ipxe")) {
						t.Errorf("%s gives iPXE %q: it would load itself for ever", name, url)
					}
				}
				ia, _ := value(opts, 3)
				if got := splitOptions(t, ia[12:]); len(got) != 1 || got[0].code != 5 {
					t.Errorf("%s has no address: firmware asks for a minute", name)
				}
			}
			if p, ok := value(adv, 7); !ok || p[0] != 255 {
				t.Error("Advertise has no preference 255: firmware collects offers for 4 to 5 s")
			}
			if _, ok := value(rep, 7); ok {
				t.Error("Reply has a preference")
			}
		})
	}
}

// TestFallsThroughAtOnce: an installed or unknown machine is given an address
// and preference 255, but no URL and no class.
func TestFallsThroughAtOnce(t *testing.T) {
	for _, mac := range []inventory.MAC{diskMAC, strangeMAC} {
		for _, c := range []client{ovmfPXE, ovmfHTTP, ipxeSARR, armHTTP} {
			t.Run(string(mac)+"/"+c.name, func(t *testing.T) {
				inv := newRack()
				adv, rep := boot(t, newServer(t, inv, nil), mac, c)
				for name, opts := range map[string][]option{"Advertise": adv, "Reply": rep} {
					for _, code := range []uint16{59, 60, 16} {
						if _, ok := value(opts, code); ok {
							t.Errorf("%s has option %d", name, code)
						}
					}
					ia, _ := value(opts, 3)
					if got := splitOptions(t, ia[12:]); len(got) != 1 || got[0].code != 5 {
						t.Errorf("%s has no address", name)
					}
				}
				if p, ok := value(adv, 7); !ok || p[0] != 255 {
					t.Error("Advertise has no preference 255")
				}
				last := inv.events[len(inv.events)-1]
				want := inventory.Disk
				if mac == strangeMAC {
					want = inventory.Hold
				}
				if last.Kind != inventory.Offered || last.Plan != want || last.Message == "" {
					t.Errorf("last event is %+v, not an offer with plan %s and its reason", last, want)
				}
			})
		}
	}
}

// TestNoURLWithoutReason: these are told nothing to boot although the machine
// is to be installed, and the event says why.
func TestNoURLWithoutReason(t *testing.T) {
	with := func(c client, code uint16, o []byte) client {
		c.options = slices.Clone(c.options)
		for i, old := range c.options {
			if binary.BigEndian.Uint16(old) == code {
				c.options[i] = o
			}
		}
		return c
	}
	class := opt(16, u32(343), u16s(32), []byte("PXEClient:Arch:00000:UNDI:003000"))
	for name, tc := range map[string]struct {
		c    client
		why  string
		boot BootURLs
	}{
		"BIOS":            {with(with(ovmfPXE, 61, opt(61, u16s(0))), 16, class), "architecture type [0]", bootFiles{}},
		"ia32":            {with(ovmfPXE, 61, opt(61, u16s(6))), "architecture type [6]", bootFiles{}},
		"ia32 HTTP":       {with(ovmfHTTP, 61, opt(61, u16s(15))), "architecture type [15]", bootFiles{}},
		"arm32 HTTP":      {with(ovmfHTTP, 61, opt(61, u16s(18))), "architecture type [18]", bootFiles{}},
		"iPXE on BIOS":    {with(ipxeSARR, 61, opt(61, u16s(0))), "architecture type [0]", bootFiles{}},
		"no 59 in ORO":    {with(ovmfPXE, 6, opt(6, u16s(23))), "option 59", bootFiles{}},
		"no URLs":         {ovmfPXE, "no boot URLs", nil},
		"no such file":    {ovmfPXE, "no boot file for pxe on amd64", noFiles{}},
		"class but no 61": {with(ovmfPXE, 61, opt(62, unhex("010300"))), "architecture type []", bootFiles{}},
	} {
		t.Run(name, func(t *testing.T) {
			inv := newRack()
			s := newServer(t, inv, nil)
			s.cfg.Boot = tc.boot
			adv, rep := boot(t, s, installMAC, tc.c)
			for _, opts := range [][]option{adv, rep} {
				for _, code := range []uint16{59, 16} {
					if _, ok := value(opts, code); ok {
						t.Errorf("answer has option %d", code)
					}
				}
			}
			last := inv.events[len(inv.events)-1]
			if last.Kind != inventory.Offered || last.Plan != inventory.Hold || !strings.Contains(last.Message, tc.why) {
				t.Errorf("event %s plan %s %q does not say %q", last.Kind, last.Plan, last.Message, tc.why)
			}
		})
	}
}

type noFiles struct{}

func (noFiles) Start(inventory.Way, inventory.Client, inventory.Arch, inventory.MAC, *inventory.View) (string, bool) {
	return "", false
}

func TestClientOf(t *testing.T) {
	parse := func(c client) *message {
		m, err := parseMessage(c.first())
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	bare := func(options ...[]byte) client { return client{duid: firmwareDUID, ia: iaNA(1, 0), options: options} }
	for name, tc := range map[string]struct {
		c    client
		want inventory.Client
		arch inventory.Arch
	}{
		"OVMF PXE":              {ovmfPXE, inventory.FirmwarePXE, inventory.AMD64},
		"OVMF HTTP":             {ovmfHTTP, inventory.FirmwareHTTP, inventory.AMD64},
		"OVMF stack":            {ovmfStack, inventory.FirmwareStack, ""},
		"iPXE":                  {ipxeSARR, inventory.IPXE, inventory.AMD64},
		"iPXE info":             {ipxeInfo, inventory.IPXE, inventory.AMD64},
		"ARM PXE":               {armPXE, inventory.FirmwarePXE, inventory.ARM64},
		"ARM HTTP":              {armHTTP, inventory.FirmwareHTTP, inventory.ARM64},
		"Talos":                 {talos, inventory.OperatingSystem, ""},
		"Talos legacy":          {talosLegacy, inventory.OperatingSystem, ""},
		"arch 9, no class":      {bare(opt(61, u16s(9))), inventory.FirmwarePXE, inventory.AMD64},
		"arch 16, no class":     {bare(opt(61, u16s(16))), inventory.FirmwareHTTP, inventory.AMD64},
		"arch 15":               {bare(opt(61, u16s(15))), inventory.FirmwareHTTP, ""},
		"arch 18":               {bare(opt(61, u16s(18))), inventory.FirmwareHTTP, ""},
		"several archs":         {bare(opt(61, u16s(6, 11, 7))), inventory.FirmwarePXE, inventory.ARM64},
		"ORO 23 + rapid commit": {bare(opt(6, u16s(23)), opt(14)), inventory.OperatingSystem, ""},
		"ORO 23 and DUID-LL":    {client{duid: talos.duid, ia: iaNA(1, 0), options: [][]byte{opt(6, u16s(23))}}, inventory.OperatingSystem, ""},
		"no ORO":                {bare(), inventory.OperatingSystem, ""},
		"class without length":  {bare(opt(16, u32(343), []byte("HTTPClient"))), inventory.FirmwareHTTP, ""},
	} {
		m := parse(tc.c)
		if got := clientOf(m); got != tc.want {
			t.Errorf("%s: client %s, want %s", name, got, tc.want)
		}
		if got := archOf(m.archs); got != tc.arch {
			t.Errorf("%s: arch %q, want %q", name, got, tc.arch)
		}
	}
}

func TestUUIDOf(t *testing.T) {
	for _, tc := range []struct {
		duid string
		c    inventory.Client
		want string
	}{
		{"0004 33221100 5544 7766 8899aabbccddeeff", inventory.FirmwarePXE, "00112233-4455-6677-8899-aabbccddeeff"},
		{"0004 33221100 5544 7766 8899aabbccddeeff", inventory.FirmwareHTTP, "00112233-4455-6677-8899-aabbccddeeff"},
		{"0004 33221100 5544 7766 8899aabbccddeeff", inventory.FirmwareStack, "00112233-4455-6677-8899-aabbccddeeff"},
		{"0004 00112233 4455 6677 8899aabbccddeeff", inventory.IPXE, "00112233-4455-6677-8899-aabbccddeeff"},
		{"0004 00112233 4455 6677 8899aabbccddeeff", inventory.OperatingSystem, "00112233-4455-6677-8899-aabbccddeeff"},
		{"0004 00000000 0000 0000 0000000000000000", inventory.IPXE, ""},
		{"0004 ffffffff ffff ffff ffffffffffffffff", inventory.FirmwarePXE, ""},
		{"0004 00112233 4455 6677 8899aabbccddee", inventory.IPXE, ""},
		{"0003 0001 525400123456", inventory.OperatingSystem, ""},
	} {
		d := unhex(tc.duid)
		before := bytes.Clone(d)
		if got := uuidOf(d, tc.c); got != tc.want {
			t.Errorf("%s of %s: %q, want %q", tc.duid, tc.c, got, tc.want)
		}
		if !bytes.Equal(d, before) {
			t.Errorf("%s was changed", tc.duid)
		}
	}
}
