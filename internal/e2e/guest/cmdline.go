//go:build linux

package main

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// commandLine is the kernel line as Talos reads it: split at white space, no
// quotes.
type commandLine struct {
	text      string // as the kernel has it
	configURL string
	eventSink string
	wipe      string // talos.experimental.wipe
	early     string // talos.config.early, joined
	// clientID switches the device flow on, at these endpoints.
	clientID, deviceURL, tokenURL string
	// mac, address and gateway are those of ip=. Without one the address is not
	// valid.
	mac     net.HardwareAddr
	address netip.Prefix
	gateway netip.Addr
}

func (c *commandLine) hasAddress() bool { return c.address.IsValid() }

func readCommandLine() (*commandLine, error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	c, err := parseCommandLine(string(text))
	if err != nil {
		return nil, err
	}
	c.text = strings.TrimSuffix(string(text), "\n")
	return c, nil
}

// parseCommandLine refuses what Talos refuses to start with: a line without
// its platform, or without the two settings its kernel self-protection check
// demands (pkg/kernel/kspp).
func parseCommandLine(text string) (*commandLine, error) {
	words := strings.Fields(text)
	for _, need := range []string{"talos.platform=metal", "slab_nomerge", "pti=on"} {
		if !slices.Contains(words, need) && !slices.Contains(words, need+"=") { // slab_nomerge= is slab_nomerge
			return nil, fmt.Errorf("the kernel line lacks %s", need)
		}
	}
	c := &commandLine{}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "talos.config":
			c.configURL = value
		case "talos.events.sink":
			c.eventSink = value
		case "talos.experimental.wipe":
			c.wipe = value
		case "talos.config.early":
			c.early += value
		case "talos.config.oauth.client_id":
			c.clientID = value
		case "talos.config.oauth.device_auth_url":
			c.deviceURL = value
		case "talos.config.oauth.token_url":
			c.tokenURL = value
		case "ip":
			if err := c.parseIP(value); err != nil {
				return nil, fmt.Errorf("%s: %w", word, err)
			}
		}
	}
	return c, nil
}

// parseIP reads [ADDRESS]:SERVER:[GATEWAY]:LENGTH:HOST:DEVICE:off:... The device
// must be the name that udev derives from the MAC: it is the only one that can
// be known before the machine runs.
func (c *commandLine) parseIP(value string) error {
	fields, err := splitFields(value)
	if err != nil {
		return err
	}
	if len(fields) < 7 {
		return fmt.Errorf("%d fields, want at least 7", len(fields))
	}
	address, err := netip.ParseAddr(fields[0])
	if err != nil {
		return err
	}
	length, err := strconv.Atoi(fields[3])
	if err != nil {
		return err
	}
	if c.address = netip.PrefixFrom(address, length); !c.address.IsValid() {
		return fmt.Errorf("%s/%d is no address with its prefix length", address, length)
	}
	if fields[2] != "" {
		if c.gateway, err = netip.ParseAddr(fields[2]); err != nil {
			return err
		}
	}
	if fields[6] != "off" {
		return fmt.Errorf("autoconf is %q, want off", fields[6])
	}
	c.mac, err = macOf(fields[5])
	return err
}

// splitFields splits at the colons outside square brackets and takes the
// brackets off.
func splitFields(s string) ([]string, error) {
	var fields []string
	for {
		var field string
		if strings.HasPrefix(s, "[") {
			inside, after, ok := strings.Cut(s[1:], "]")
			if !ok || after != "" && after[0] != ':' {
				return nil, fmt.Errorf("brackets do not match")
			}
			field, s = inside, after
		} else {
			end := strings.IndexByte(s, ':')
			if end < 0 {
				end = len(s)
			}
			field, s = s[:end], s[end:]
		}
		fields = append(fields, field)
		if s == "" {
			return fields, nil
		}
		s = s[1:]
	}
}

// macOf reads the MAC from enx525400123456, the alternative name that udev
// gives a NIC (systemd.net-naming-scheme(7), "mac").
func macOf(device string) (net.HardwareAddr, error) {
	digits, ok := strings.CutPrefix(device, "enx")
	mac, err := hex.DecodeString(digits)
	if !ok || err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("device %q is not enx and the twelve digits of a MAC", device)
	}
	return mac, nil
}
