package daemon

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

func TestExampleConfig(t *testing.T) {
	text, err := os.ReadFile("../../deploy/provisiond.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	shown, err := ParseConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	if shown.Address != netip.MustParseAddr("2001:db8:1::2") || len(shown.Subnets) != 2 || !shown.Advertise {
		t.Errorf("the example reads as %+v", shown)
	}
	// What is commented out must be the default, or the manual lies.
	var all strings.Builder
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "#"); ok && !strings.HasPrefix(rest, " ") || ok && strings.HasPrefix(rest, "  ") {
			line = rest
		}
		all.WriteString(line)
	}
	written, err := ParseConfig([]byte(all.String()))
	if err != nil {
		t.Fatalf("with every default written out: %v\n%s", err, all.String())
	}
	a, b := *shown, *written
	if a.Data != b.Data || a.HTTPPort != b.HTTPPort || a.EventsPort != b.EventsPort || a.DHCPv6Port != b.DHCPv6Port || a.TFTPPort != b.TFTPPort ||
		a.Socket != b.Socket || a.Listen != b.Listen || a.LogLevel != b.LogLevel || a.LogJSON != b.LogJSON || len(a.Loaders) != len(b.Loaders) ||
		a.Boot[inventory.AMD64] != b.Boot[inventory.AMD64] || a.SLAAC != b.SLAAC || a.RouterLifetime != b.RouterLifetime {
		t.Errorf("the defaults shown are not the defaults:\n%+v\n%+v", a, b)
	}
}

func TestBadConfig(t *testing.T) {
	const subnet = "subnets: [{name: a, prefix: 2001:db8::/64, machines: 2001:db8::100-2001:db8::1ff}]\n"
	const good = "address: 2001:db8::2\n" + subnet
	if _, err := ParseConfig([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ text, want string }{
		"empty":                {"", "empty"},
		"unknown key":          {good + "adress: x\n", "adress"},
		"no address":           {subnet, "address"},
		"link-local address":   {"address: fe80::1\n" + subnet, "address"},
		"IPv4 address":         {"address: 192.0.2.1\n" + subnet, "address"},
		"no subnet":            {"address: 2001:db8::2\n", "subnets"},
		"overlap":              {good[:len(good)-2] + ", {name: b, prefix: 2001:db8::/48}]\n", "subnets[1].prefix"},
		"same name":            {good[:len(good)-2] + ", {name: a, prefix: 2001:db8:1::/64}]\n", "subnets[1].name"},
		"host bits":            {"address: 2001:db8::2\nsubnets: [{name: a, prefix: 2001:db8::1/64}]\n", "subnets[0].prefix"},
		"range outside":        {"address: 2001:db8::2\nsubnets: [{name: a, prefix: 2001:db8::/64, pool: 2001:db8:1::1-2001:db8:1::2}]\n", "subnets[0].pool"},
		"range backwards":      {"address: 2001:db8::2\nsubnets: [{name: a, prefix: 2001:db8::/64, pool: 2001:db8::2-2001:db8::1}]\n", "subnets[0].pool"},
		"own address in range": {"address: 2001:db8::150\n" + subnet, "subnets[0]"},
		"strangers, no pool":   {"address: 2001:db8::2\nsubnets: [{name: a, prefix: 2001:db8::/64, strangers: true}]\n", "subnets[0].pool"},
		"gateway off link":     {"address: 2001:db8::2\nsubnets: [{name: a, prefix: 2001:db8::/64, gateway: 2001:db8:1::1}]\n", "subnets[0].gateway"},
		"interface not ours":   {"address: 2001:db8::2\nsubnets: [{name: a, prefix: 2001:db8::/64, interface: eth9}]\n", "subnets[0].interface"},
		"lifetimes":            {"address: 2001:db8::2\nsubnets: [{name: a, prefix: 2001:db8::/64, preferred: 2h, valid: 1h}]\n", "subnets[0].lease"},
		"RA nowhere":           {good + "routerAdvertisements: {enabled: true}\n", "interfaces"},
		"router lifetime":      {good + "routerAdvertisements: {routerLifetime: 3h}\n", "routerLifetime"},
		"open API":             {good + "api: {listen: \"[::]:8440\"}\n", "api.listen"},
		"no API":               {good + "api: {listen: \"\", socket: \"\"}\n", "api"},
		"port out of range":    {good + "ports: {http: 70000}\n", "70000"},
		"log level":            {good + "log: {level: loud}\n", "log.level"},
		"log format":           {good + "log: {format: xml}\n", "log.format"},
		"boot loader":          {good + "boot: {amd64: grub.efi}\n", "boot.amd64"},
		"boot architecture":    {good + "boot: {mips: snponly.efi}\n", "mips"},
		"prefix junk":          {"address: 2001:db8::2\nsubnets: [{name: a, prefix: rack}]\n", "rack"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseConfig([]byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one that names %q", err, tt.want)
			}
			if fe := (*inventory.FieldError)(nil); errors.As(err, &fe) && fe.Fix == "" && name != "overlap" && name != "same name" && name != "range backwards" {
				t.Errorf("error %v says no fix", err)
			}
		})
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("address: 2001:db8::2\nsubnets: [{name: a, prefix: 2001:db8::/64}]\n"))
	f.Add([]byte("subnets: [{pool: ::-ffff::}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if c, err := ParseConfig(text); err == nil && (!c.Address.IsValid() || len(c.Subnets) == 0) {
			t.Errorf("%q was accepted as %+v", text, c)
		}
	})
}
