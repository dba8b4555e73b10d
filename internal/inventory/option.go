package inventory

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Option is a DHCPv6 option that an operator has the server send beside its own.
type Option struct {
	Code  uint16
	Value []byte // as on the wire, at most maxOption octets
	// Always sends it unasked for too.
	Always bool
}

// OptionSpec is an Option as an operator writes it: a code, and exactly one value.
type OptionSpec struct {
	Code      uint16       `yaml:"code"`
	Addresses []netip.Addr `yaml:"addresses"` // 16 octets each
	Names     []string     `yaml:"names"`     // DNS names (RFC 8415 section 10)
	Text      string       `yaml:"text"`      // UTF-8, without a NUL
	Number    *uint32      `yaml:"number"`    // 4 octets
	Hex       string       `yaml:"hex"`
	Always    bool         `yaml:"always"`
}

const maxOption = 512

// ownOptions are those the server sends itself, or that belong to the exchange
// (RFC 8415 section 21), by where they are set instead.
var ownOptions = map[uint16]string{
	23: "dns", 24: "domains", 56: "ntp", 59: "boot", 60: "", 31: "ntp",
	1: "", 2: "", 3: "", 4: "", 5: "", 6: "", 7: "", 8: "", 9: "", 11: "", 12: "", 13: "", 14: "", 15: "", 16: "", 17: "",
	18: "", 19: "", 20: "", 25: "", 26: "", 32: "", 37: "", 39: "", 43: "", 61: "", 62: "", 66: "", 79: "", 82: "", 83: "", 135: "",
}

// Option checks and encodes what an operator wrote. Errors are *FieldError.
func (o OptionSpec) Option() (Option, error) {
	out := Option{Code: o.Code, Always: o.Always}
	if at, own := ownOptions[o.Code]; own || o.Code == 0 {
		fix := "leave it out"
		if at != "" {
			fix = "set " + at + " instead"
		}
		return out, fieldErr("code", fix, "option %d is the server's own", o.Code)
	}
	values := 0
	for _, set := range []bool{len(o.Addresses) > 0, len(o.Names) > 0, o.Text != "", o.Number != nil, o.Hex != ""} {
		if set {
			values++
		}
	}
	if values != 1 {
		return out, fieldErr("code", "one of addresses, names, text, number, hex", "option %d has %d values, not one", o.Code, values)
	}
	for i, a := range o.Addresses {
		if !a.Is6() || a.Is4In6() || a.Zone() != "" {
			return out, fieldErr(fmt.Sprintf("addresses[%d]", i), "an IPv6 address", "%s is none", a)
		}
		out.Value = append(out.Value, a.AsSlice()...)
	}
	for i, name := range o.Names {
		b, err := encodeName(name)
		if err != nil {
			return out, fieldErr(fmt.Sprintf("names[%d]", i), "a name such as server.example.net", "%q: %v", name, err)
		}
		out.Value = append(out.Value, b...)
	}
	if strings.ContainsRune(o.Text, 0) {
		return out, fieldErr("text", "leave it out", "it has a NUL")
	}
	out.Value = append(out.Value, o.Text...)
	if o.Number != nil {
		out.Value = binary.BigEndian.AppendUint32(out.Value, *o.Number)
	}
	if o.Hex != "" {
		b, err := hex.DecodeString(strings.ReplaceAll(o.Hex, ":", ""))
		if err != nil {
			return out, fieldErr("hex", "octets such as 01:02:ff", "%v", err)
		}
		out.Value = b
	}
	if len(out.Value) > maxOption {
		return out, fieldErr("code", fmt.Sprintf("at most %d octets", maxOption), "option %d has %d octets", o.Code, len(out.Value))
	}
	return out, nil
}

// encodeName writes a DNS name without compression (RFC 8415 section 10).
func encodeName(name string) ([]byte, error) {
	var b []byte
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if len(label) == 0 || len(label) > 63 {
			return nil, fmt.Errorf("a label of %d octets", len(label))
		}
		b = append(append(b, byte(len(label))), label...)
	}
	if b = append(b, 0); len(b) > 255 {
		return nil, fmt.Errorf("%d octets", len(b))
	}
	return b, nil
}

func checkOptions(options []Option) error {
	for i, o := range options {
		if slices.ContainsFunc(options[:i], func(p Option) bool { return p.Code == o.Code }) {
			return fieldErr(fmt.Sprintf("options[%d]", i), "keep one", "option %d is set twice", o.Code)
		}
	}
	return nil
}
