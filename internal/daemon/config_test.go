package daemon

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
	"github.com/provisiond/provisiond/internal/tracing"
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
	if shown.Address != netip.MustParseAddr("2001:db8:1::2") || len(shown.Subnets) != 2 || len(shown.Advertise) != 1 {
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
	if a.Data != b.Data || a.Key != b.Key || a.User != b.User || a.HTTPPort != b.HTTPPort || a.HTTPSPort != b.HTTPSPort || a.EventsPort != b.EventsPort || a.DHCPv6Port != b.DHCPv6Port || a.TFTPPort != b.TFTPPort || a.KernelLogPort != b.KernelLogPort || a.KernelLog != b.KernelLog ||
		a.Socket != b.Socket || a.Listen != b.Listen || a.LogLevel != b.LogLevel || a.LogJSON != b.LogJSON || len(a.Loaders) != len(b.Loaders) ||
		a.OIDC != nil || b.OIDC != nil || a.Tracing != nil || b.Tracing != nil || a.Boot[inventory.AMD64] != b.Boot[inventory.AMD64] || !maps.Equal(a.Advertise, b.Advertise) {
		t.Errorf("the defaults shown are not the defaults:\n%+v\n%+v", a, b)
	}
}

func TestBadConfig(t *testing.T) {
	const subnet = "subnets: [{name: a, prefix: 2001:db8::/64, machines: 2001:db8::100-2001:db8::1ff}]\n"
	const good = "address: 2001:db8::2\n" + subnet
	if _, err := ParseConfig([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, listen := range []string{"[::1]:8440", "[2001:db8:99::1]:8440", "[fe80::1%eth0]:8440"} {
		if _, err := ParseConfig([]byte(good + "api: {listen: \"" + listen + "\"}\n")); err != nil {
			t.Errorf("%s: %v", listen, err)
		}
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
		"router lifetime":      {good + "interfaces: [a]\nrouterAdvertisements: {enabled: true, routerLifetime: 3h}\n", "routerLifetime"},
		"open API":             {good + "api: {listen: \"[::]:8440\"}\n", "api.listen"},
		"API at the rack's":    {good + "api: {listen: \"[2001:db8::2]:8440\"}\n", "api.listen"},
		"API on the rack's":    {good + "api: {listen: \"[2001:db8::3]:8440\"}\n", "api.listen"},
		"API beside the rack":  {good + "interfaces: [eth1]\napi: {listen: \"[fe80::1%eth1]:8440\"}\n", "api.listen"},
		"API on no interface":  {good + "api: {listen: \"[fe80::1]:8440\"}\n", "api.listen"},
		"API over IPv4":        {good + "api: {listen: \"127.0.0.1:8440\"}\n", "api.listen"},
		"API without a port":   {good + "api: {listen: \"[::1]\"}\n", "api.listen"},
		"API by no name":       {good + "api: {names: [a_b]}\n", "api.names[0]"},
		"certificate, no key":  {good + "api: {tls: {certificate: /a}}\n", "api.tls"},
		"key, no certificate":  {good + "api: {tls: {key: /a}}\n", "api.tls"},
		"no API":               {good + "api: {listen: \"\", socket: \"\"}\n", "api"},
		"port out of range":    {good + "ports: {http: 70000}\n", "70000"},
		"log level":            {good + "log: {level: loud}\n", "log.level"},
		"log format":           {good + "log: {format: xml}\n", "log.format"},
		"boot loader":          {good + "boot: {amd64: grub.efi}\n", "boot.amd64"},
		"boot architecture":    {good + "boot: {mips: snponly.efi}\n", "mips"},
		"loader architecture":  {good + "loaders: {mips/x.efi: /x}\n", "mips/x.efi"},
		"loader extension":     {good + "loaders: {amd64/snponly: /x}\n", "amd64/snponly"},
		"loader folder":        {good + "loaders: {amd64/a/b.efi: /x}\n", "amd64/a/b.efi"},
		"loader upwards":       {good + "loaders: {amd64/../b.efi: /x}\n", "amd64/../b.efi"},
		"loader without arch":  {good + "loaders: {snponly.efi: /x}\n", "ARCH/FILE.efi"},
		"loader without file":  {good + "loaders: {amd64/snponly.efi: \"\"}\n", "loaders.amd64/snponly.efi"},
		"events on http":       {good + "ports: {http: 4050}\n", "ports.events"},
		"http on events":       {good + "ports: {events: 8080}\n", "ports.events"},
		"kernel log on http":   {good + "ports: {kernelLog: 8080}\n", "ports.kernelLog"},
		"kernel log on events": {good + "ports: {kernelLog: 4050}\n", "ports.kernelLog"},
		"tftp on dhcpv6":       {good + "ports: {tftp: 547}\n", "ports.tftp"},
		"proxy as URL":         {good + "talos: {proxy: 'http://p:3128'}\n", "talos.proxy"},
		"proxy without port":   {good + "talos: {proxy: p.example.org}\n", "talos.proxy"},
		"proxy unbracketed":    {good + "talos: {proxy: '2001:db8::3:3128'}\n", "talos.proxy"},
		"proxy port 0":         {good + "talos: {proxy: 'p:0'}\n", "talos.proxy"},
		"proxy without host":   {good + "talos: {proxy: ':3128'}\n", "talos.proxy"},
		"proxy with a user":    {good + "talos: {proxy: 'u@p:3128'}\n", "talos.proxy"},
		"kernel log":           {good + "talos: {kernelLog: '[2001:db8::5]:514'}\n", "talos.kernelLog"},
		"kernel log bare":      {good + "talos: {kernelLog: 'tcp://2001:db8::5:514'}\n", "talos.kernelLog"},
		"kernel log scheme":    {good + "talos: {kernelLog: 'tls://[2001:db8::5]:514'}\n", "talos.kernelLog"},
		"relay no address":     {inSubnet("relays: [router1]"), "subnets[0].relays[0]"},
		"relay host bits":      {inSubnet("relays: ['2001:db8:1::1', '2001:db8:1::1/64']"), "subnets[0].relays[1]"},
		"relay IPv4":           {inSubnet("relays: [192.0.2.1]"), "subnets[0].relays[0]"},
		"DNS IPv4":             {inSubnet("dns: [192.0.2.1]"), "subnets[0].dns[0]"},
		"DNS multicast":        {inSubnet("dns: ['2001:db8::53', 'ff02::fb']"), "subnets[0].dns[1]"},
		"DNS unspecified":      {inSubnet("dns: ['::']"), "subnets[0].dns[0]"},
		"DNS loopback":         {inSubnet("dns: ['::1']"), "subnets[0].dns[0]"},
		"DNS link-local":       {inSubnet("dns: ['fe80::1']"), "subnets[0].dns[0]"},
		"DNS zone":             {inSubnet("dns: ['2001:db8::1%eth0']"), "subnets[0].dns[0]"},
		"DNS mapped":           {inSubnet("dns: ['::ffff:192.0.2.1']"), "subnets[0].dns[0]"},
		"DNS empty":            {inSubnet("dns: ['']"), "subnets[0].dns[0]"},
		"NTP IPv4":             {inSubnet("ntp: [192.0.2.1]"), "subnets[0].ntp[0]"},
		"stall no phase":       {good + "stall: {discovered: 1m}\n", "stall.discovered"},
		"stall negative":       {good + "stall: {offered: -1m}\n", "stall.offered"},
		"traces nowhere":       {good + "tracing: {headersFile: /a}\n", "tracing.endpoint"},
		"traces by gRPC":       {good + "tracing: {endpoint: 'otel.example.org:4317'}\n", "tracing.endpoint"},
		"NTP no name":          {inSubnet("ntp: [ntp.example.org, 'ntp..org']"), "subnets[0].ntp[1]"},
		"NTP zone":             {inSubnet("ntp: ['ff05::101%eth0']"), "subnets[0].ntp[0]"},
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

// inSubnet is a config whose only subnet has one more setting.
func inSubnet(setting string) string {
	return "address: 2001:db8::2\nsubnets: [{name: a, prefix: 2001:db8::/64, " + setting + "}]\n"
}

// What the YAML library refuses must be told in the words of the file.
func TestConfigWords(t *testing.T) {
	const see = " (see deploy/provisiond.example.yaml)"
	for text, want := range map[string]string{
		"":                                   "the config file is empty (start from deploy/provisiond.example.yaml)",
		"# only a remark\n":                  "the config file is empty (start from deploy/provisiond.example.yaml)",
		"\n\nadress: x\n":                    `line 3: "adress" is no setting here` + see,
		"subnets:\n- name: a\n  vlan: 5\n":   `line 3: "vlan" is no setting here` + see,
		"log: {levl: x}\n":                   `line 1: "levl" is no setting here` + see,
		"data: /a\ndata: /b\n":               "line 2: data: is set twice, first in line 1 (keep one)",
		"address: rack\n":                    `line 1: address: "rack" is not an address (write one such as 2001:db8::1, without a length)`,
		"address: 2001:db8::2/64\n":          `line 1: address: "2001:db8::2/64" is not an address (write one such as 2001:db8::1, without a length)`,
		"address: [a]\n":                     "line 1: address: a list is not an address (write one such as 2001:db8::1, without a length)",
		"subnets:\n- name: a\n  prefix: a\n": `line 3: subnets[0].prefix: "a" is not a prefix (write 2001:db8::/64)`,
		"subnets: [{prefix: '2001:db8::'}]":  `line 1: subnets[0].prefix: "2001:db8::" is not a prefix (write 2001:db8::/64)`,
		"subnets: [{}, {dns: [a]}]":          `line 1: subnets[1].dns[0]: "a" is not an address (write one such as 2001:db8::1, without a length)`,
		"subnets: [{dns: '2001:db8::53'}]":   `line 1: subnets[0].dns: "2001:db8::53" is not a list (write it in brackets, such as [2001:db8::53])`,
		"subnets: [{preferred: 12}]":         `line 1: subnets[0].preferred: "12" is not a duration (write a unit, such as 12h)`,
		"subnets: [{valid: 1d}]":             `line 1: subnets[0].valid: "1d" is not a duration (write a unit, such as 12h)`,
		"subnets: [{strangers: 5}]":          `line 1: subnets[0].strangers: "5" is not a switch (write true or false)`,
		"subnets: {name: a}":                 "line 1: subnets: a mapping is not a list (begin each subnet with a dash: - name: rack1)",
		"subnets:\n  name: a\n":              "line 2: subnets: a mapping is not a list (begin each subnet with a dash: - name: rack1)",
		"subnets: [rack1]":                   `line 1: subnets[0]: "rack1" is not a group of settings` + see,
		"routerAdvertisements: true":         `line 1: routerAdvertisements: "true" is not a group of settings` + see,
		"interfaces: eth0":                   `line 1: interfaces: "eth0" is not a list (write it in brackets, such as [eth1])`,
		"ports: {http: 70000}":               `line 1: ports.http: "70000" is not a port (a number from 0 to 65535)`,
		"ports: {http: -1}":                  `line 1: ports.http: "-1" is not a port (a number from 0 to 65535)`,
		"loaders: [x]":                       "line 1: loaders: a list is not a mapping (write NAME: VALUE)",
		"data: [x]":                          "line 1: data: a list is not a text (write one value)",
		"- a\n":                              "line 1: a list is not a group of settings" + see,
		"ports: {http: x}\ndata: {}\n": `line 1: ports.http: "x" is not a port (a number from 0 to 65535)` + "\n" +
			"line 2: data: a mapping is not a text (write one value)",
		"data: /a\n---\ndata: /b\n": "something follows the end of the settings (write one document, without a line ---)",
		"subnets: [\n":              "not YAML: ",
		"\tdata: x\n":               "not YAML: ",
	} {
		_, err := ParseConfig([]byte(text))
		if err == nil || err.Error() != want && (!strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(want, ": ")) {
			t.Errorf("%q\n\tgives %v\n\twant  %s", text, err, want)
			continue
		}
		if fe := (*inventory.FieldError)(nil); !errors.As(err, &fe) || fe.Fix == "" {
			t.Errorf("%q: %v says no fix", text, err)
		}
	}
}

func TestGoodConfig(t *testing.T) {
	for _, text := range []string{
		inSubnet("dns: ['2001:db8::53', 'fd00::53']"),
		inSubnet("gateway: 'fe80::1'") + "ports: {http: 0, events: 0, dhcpv6: 0, tftp: 0}\n",
		inSubnet("ntp: []") + "talos: {proxy: '[2001:db8::3]:3128', kernelLog: 'tcp://[2001:db8::5]:514/'}\n",
		inSubnet("ntp: []") + "talos: {proxy: 'proxy.example.org:3128', kernelLog: 'udp://log.example.org:514'}\n",
		inSubnet("ntp: []") + "tracing: {endpoint: 'https://otel.example.org:4318', headersFile: /x, ca: /y}\n",
		inSubnet("ntp: []") + "loaders: {amd64/my_loader-2.0.efi: /x, arm64/ipxe.efi: /y}\n",
		"---\n" + inSubnet("ntp: []") + "...\n",
	} {
		if _, err := ParseConfig([]byte(text)); err != nil {
			t.Errorf("%s\trefused: %v", text, err)
		}
	}
}

// What others have must be given to no machine.
func TestReserved(t *testing.T) {
	c, err := ParseConfig([]byte(`address: 2001:db8::2
subnets:
- {name: a, prefix: 2001:db8::/64, gateway: 2001:db8::1, dns: ["2001:db8::53", "2001:db8:1::53", "2001:4860::1"], ntp: ["2001:db8::123"], reserved: ["2001:db8::53", "2001:db8::9"]}
- {name: b, prefix: 2001:db8:1::/64, gateway: fe80::1, ntp: ["2001:db8::123"]}
`))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{
		"[2001:db8::53 2001:db8::9 2001:db8::2 2001:db8::1 2001:db8::123]",
		"[2001:db8:1::53]",
	} {
		if got := fmt.Sprint(c.Subnets[i].Reserved); got != want {
			t.Errorf("subnet %d reserves %s, want %s", i, got, want)
		}
	}
}

// TestUnit: the service that we ship gives provisiond no more than it needs.
func TestUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("LEFT OUT: systemd-analyze is missing")
	}
	out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=true", "--no-pager", "--threshold=20", "../../deploy/provisiond.service").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Overall exposure level") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestCheckHost(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	amd64, text := write("a", racktest.Loader(racktest.AMD64)), write("t", []byte("<html>"))
	for name, tt := range map[string]struct {
		c    Config
		want []string // fields; none: fine
	}{
		"fine":               {Config{Interfaces: []string{"lo"}, Loaders: map[string]string{"amd64/x.efi": amd64}}, nil},
		"no interface":       {Config{Interfaces: []string{"lo", "nosuch0"}}, []string{"interfaces[1]: "}},
		"no file":            {Config{Loaders: map[string]string{"amd64/x.efi": dir + "/nosuch"}}, []string{"loaders.amd64/x.efi: "}},
		"no program":         {Config{Loaders: map[string]string{"amd64/x.efi": text}}, []string{"loaders.amd64/x.efi: "}},
		"other architecture": {Config{Loaders: map[string]string{"arm64/x.efi": amd64}}, []string{"loaders.arm64/x.efi: "}},
		"no file of headers": {Config{Tracing: &tracing.Config{Endpoint: "https://[::1]", HeadersFile: dir + "/nosuch"}}, []string{"tracing.headersFile: "}},
		"both":               {Config{Interfaces: []string{"nosuch0"}, Loaders: map[string]string{"amd64/x.efi": text}}, []string{"interfaces[0]: ", "loaders.amd64/x.efi: "}},
	} {
		t.Run(name, func(t *testing.T) {
			err := tt.c.CheckHost()
			if (err == nil) != (len(tt.want) == 0) {
				t.Fatalf("got %v", err)
			}
			for _, field := range tt.want {
				if !strings.Contains(err.Error(), field) {
					t.Errorf("got %v, want an error on %s", err, field)
				}
			}
			if fe := (*inventory.FieldError)(nil); err != nil && (!errors.As(err, &fe) || fe.Fix == "") {
				t.Errorf("%v says no fix", err)
			}
		})
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("address: 2001:db8::2\nsubnets: [{name: a, prefix: 2001:db8::/64}]\n"))
	f.Add([]byte("subnets: [{pool: ::-ffff::}]"))
	f.Add([]byte("a: &x [*x]\nsubnets: &y [{dns: *y, prefix: a}]\n? [b]\n: c\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if c, err := ParseConfig(text); err == nil && (!c.Address.IsValid() || len(c.Subnets) == 0) {
			t.Errorf("%q was accepted as %+v", text, c)
		}
	})
}

// TestOptionErrors: what is wrong with an option of the operator's is named.
func TestOptionErrors(t *testing.T) {
	for text, want := range map[string]string{
		"options: [{code: 23, text: a}]":           "subnets[0].options[0].code: option 23 is the server's own (set dns instead)",
		"options: [{code: 41}]":                    "subnets[0].options[0].code: option 41 has 0 values, not one",
		"options: [{code: 242, hex: '0g'}]":        "subnets[0].options[0].hex",
		"reserved: ['2001:db8::5-2001:db8::1']":    "subnets[0].reserved[0]",
		"reserved: ['2001:db8:9::5']":              "subnets[0].reserved[0]",
		"options: [{code: 70000, text: a}]":        "subnets[0].options[0].code",
		"options: [{code: 41, text: a, size: 5}]":  `"size" is no setting here`,
		"options: [{code: 242, addresses: [eth]}]": "subnets[0].options[0].addresses[0]",
	} {
		_, err := ParseConfig([]byte("address: 2001:db8::2\nsubnets:\n- {name: a, prefix: '2001:db8::/64', " + text + "}\n"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	twice := "address: 2001:db8::2\nsubnets:\n- {name: a, prefix: '2001:db8::/64', options: [{code: 41, text: a}, {code: 41, text: b}]}\n"
	if _, err := ParseConfig([]byte(twice)); err == nil || !strings.Contains(err.Error(), "option 41 is set twice") {
		t.Errorf("twice: %v", err)
	}
}

// TestAdvertisementsBySubnet: a subnet has of its own what it sets, and the rest
// from what holds for all.
func TestAdvertisementsBySubnet(t *testing.T) {
	const text = `address: 2001:db8::2
interfaces: [a, b, c]
routerAdvertisements: {enabled: true, slaac: true, mtu: 9000}
subnets:
- {name: a, prefix: 2001:db8::/64, interface: a, routerAdvertisements: {slaac: false, routerLifetime: 30m}}
- {name: b, prefix: 2001:db8:1::/64, interface: b, routerAdvertisements: {enabled: false}}
`
	c, err := ParseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Advertisement{"a": {Lifetime: 30 * time.Minute, MTU: 9000}, "c": {SLAAC: true, MTU: 9000}}
	if !maps.Equal(c.Advertise, want) {
		t.Errorf("advertised: %+v, want %+v", c.Advertise, want)
	}
	if c.Subnets[0].Preference != 255 {
		t.Errorf("preference %d by default", c.Subnets[0].Preference)
	}
	for from, want := range map[string]string{
		"routerLifetime: 30m": "router advertisements on a: routerLifetime", // less than the interval between two
		"mtu: 9000":           "router advertisements on a: mtu",
		"slaac: false":        "",
	} {
		to := map[string]string{"routerLifetime: 30m": "routerLifetime: 60s", "mtu: 9000": "mtu: 500", "slaac: false": "slaac: false"}[from]
		_, err := ParseConfig([]byte(strings.Replace(text, from, to, 1)))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", to, err, want)
		}
	}
	for bad, want := range map[string]string{
		"renew: 13h":            "subnets[0].renew",
		"rebind: 1h, renew: 2h": "subnets[0].renew",
		"preference: 256":       "preference",
	} {
		_, err := ParseConfig([]byte("address: 2001:db8::2\nsubnets:\n- {name: a, prefix: 2001:db8::/64, " + bad + "}\n"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", bad, err, want)
		}
	}
}
