package inventory_test

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

func TestOptionSpec(t *testing.T) {
	number := uint32(3600)
	for want, spec := range map[string]inventory.OptionSpec{
		"20010db8000000000000000000000053":             {Code: 22, Addresses: []netip.Addr{addr("2001:db8::53")}},
		"0373697007657861" + "6d706c65" + "036e657400": {Code: 21, Names: []string{"sip.example.net"}},
		"55544330": {Code: 41, Text: "UTC0"},
		"00000e10": {Code: 242, Number: &number},
		"0102ff":   {Code: 242, Hex: "01:02:ff"},
	} {
		if o, err := spec.Option(); err != nil || hex.EncodeToString(o.Value) != want || o.Code != spec.Code {
			t.Errorf("%+v: %x, %v, want %s", spec, o.Value, err, want)
		}
	}
	for want, spec := range map[string]inventory.OptionSpec{
		"set dns instead":     {Code: 23, Text: "x"},
		"set boot instead":    {Code: 59, Text: "x"},
		"is the server's own": {Code: 3, Hex: "00"},
		"0 values":            {Code: 41},
		"2 values":            {Code: 41, Text: "a", Hex: "00"},
		"addresses[0]":        {Code: 22, Addresses: []netip.Addr{addr("10.0.0.1")}},
		"names[1]":            {Code: 21, Names: []string{"a", "b..c"}},
		"hex":                 {Code: 242, Hex: "0"},
		"at most 512":         {Code: 242, Text: strings.Repeat("x", 513)},
	} {
		_, err := spec.Option()
		var fe *inventory.FieldError
		if !errors.As(err, &fe) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", spec, err, want)
		}
	}
}
