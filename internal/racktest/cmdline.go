package racktest

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// maxCommandLine is COMMAND_LINE_SIZE of x86; the kernel cuts the rest off.
const maxCommandLine = 2048

// commandLine is a kernel line as Talos reads it: split at white space, no
// quotes, repeated keys kept in order (siderolabs/go-procfs).
type commandLine struct {
	text   string
	values map[string][]string
}

func parseCommandLine(s string) *commandLine {
	c := &commandLine{text: s, values: map[string][]string{}}
	for _, word := range strings.Fields(s) {
		key, value, _ := strings.Cut(word, "=")
		c.values[key] = append(c.values[key], value)
	}
	return c
}

func (c *commandLine) has(key string) bool { _, ok := c.values[key]; return ok }

func (c *commandLine) first(key string) string {
	if v := c.values[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// check is what Talos' systemRequirements phase enforces (pkg/kernel/kspp), and
// what stands before it.
func (c *commandLine) check() error {
	switch {
	case len(c.text) >= maxCommandLine:
		return fault("", "kernel line of %d bytes: the kernel takes %d", len(c.text), maxCommandLine-1)
	case strings.Contains(c.text, "${"):
		return fault("", "kernel line holds an unexpanded ${")
	case c.first("talos.platform") != "metal" && c.first("talos.platform") != "nocloud":
		return fault("", "kernel line without talos.platform=metal, and not of the nocloud image")
	case !slices.Contains(c.values["slab_nomerge"], ""):
		return fault("", "KSPP kernel parameter slab_nomerge was not set")
	case !slices.Contains(c.values["pti"], "on"):
		return fault("", "KSPP kernel parameter pti=on was not set")
	}
	return nil
}

// staticAddress is one ip= argument.
type staticAddress struct {
	prefix   netip.Prefix
	gateway  netip.Addr
	hostname string
	device   string
}

// parseIP reads ip=<addr>:<server>:<gw>:<mask>:<host>:<dev>:<autoconf>:<dns0>:
// <dns1>:<ntp0>, IPv6 addresses in brackets (Talos
// controllers/network/cmdline.go). The DHCP forms configure IPv4 only and give
// a zero value.
func parseIP(s string) (staticAddress, error) {
	var a staticAddress
	fields, err := splitBracketed(s)
	if err != nil {
		return a, fmt.Errorf("ip=%s: %w", s, err)
	}
	if len(fields) == 1 || len(fields) == 2 && fields[1] == "dhcp" {
		return a, nil
	}
	if len(fields) < 4 || len(fields) > 10 {
		return a, fmt.Errorf("ip=%s: %d fields", s, len(fields))
	}
	field := func(i int) string {
		if i < len(fields) {
			return fields[i]
		}
		return ""
	}
	addr, err := netip.ParseAddr(field(0))
	if err != nil {
		return a, fmt.Errorf("ip=%s: address: %w", s, err)
	}
	bits := addr.BitLen()
	if m := field(3); m != "" {
		if bits, err = strconv.Atoi(m); err != nil {
			return a, fmt.Errorf("ip=%s: mask: %w", s, err)
		}
	}
	if a.prefix = netip.PrefixFrom(addr, bits); !a.prefix.IsValid() {
		return a, fmt.Errorf("ip=%s: prefix length %d", s, bits)
	}
	if gw := field(2); gw != "" {
		if a.gateway, err = netip.ParseAddr(gw); err != nil {
			return a, fmt.Errorf("ip=%s: gateway: %w", s, err)
		}
	}
	for i := 7; i < 9; i++ {
		if v := field(i); v != "" {
			if _, err := netip.ParseAddr(v); err != nil {
				return a, fmt.Errorf("ip=%s: DNS: %w", s, err)
			}
		}
	}
	a.hostname, a.device = field(4), field(5)
	return a, nil
}

// splitBracketed splits at colons outside brackets and takes the brackets off.
func splitBracketed(s string) ([]string, error) {
	var fields []string
	for {
		if rest, ok := strings.CutPrefix(s, "["); ok {
			inside, after, ok := strings.Cut(rest, "]")
			if !ok || after != "" && after[0] != ':' {
				return nil, fmt.Errorf("unbalanced brackets")
			}
			fields = append(fields, inside)
			if after == "" {
				return fields, nil
			}
			s = after[1:]
			continue
		}
		field, rest, more := strings.Cut(s, ":")
		fields = append(fields, field)
		if !more {
			return fields, nil
		}
		s = rest
	}
}

// encoded decodes talos.config.early or .inline: base64 of zstd, repeated
// arguments joined. It returns nil when there is none.
func (c *commandLine) encoded(key string) ([]byte, error) {
	if !c.has(key) {
		return nil, nil
	}
	packed, err := base64.StdEncoding.DecodeString(strings.Join(c.values[key], ""))
	if err != nil {
		return nil, fmt.Errorf("failed to decode base64 config from cmdline %s: %w", key, err)
	}
	zr, err := zstd.NewReader(strings.NewReader(string(packed)), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer zr.Close()
	text, err := io.ReadAll(io.LimitReader(zr, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("failed to read zstd compressed config from cmdline %s: %w", key, err)
	}
	return text, nil
}
