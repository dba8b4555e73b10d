package dhcpv6

import (
	"encoding/binary"
	"iter"

	"github.com/insomniacslk/dhcp/dhcpv6"
)

// options are options one after the other, as they stand in a packet (RFC 8415
// section 21.1): read in place and written in place, because a hall that boots is
// some hundred thousand of them. The library's own parsers are not used on input
// besides: they recurse into relay messages as deep as a packet nests them, and
// refuse the whole message for one odd option.
type options []byte

const optionHeader = 4 // octets: code and length

// parseOptions checks that options are whole, and looks no further.
func parseOptions(b []byte) (options, error) {
	for rest := b; len(rest) > 0; {
		if len(rest) < optionHeader {
			return nil, dropf(dropMalformed, "options end after %d octets of one", len(rest))
		}
		n := optionHeader + int(binary.BigEndian.Uint16(rest[2:]))
		if n > len(rest) {
			return nil, dropf(dropMalformed, "option %d claims %d octets of %d", binary.BigEndian.Uint16(rest), n-optionHeader, len(rest)-optionHeader)
		}
		rest = rest[n:]
	}
	return b, nil
}

// all is the options in order. They must be whole.
func (o options) all() iter.Seq2[dhcpv6.OptionCode, []byte] {
	return func(yield func(dhcpv6.OptionCode, []byte) bool) {
		for len(o) >= optionHeader {
			n := optionHeader + int(binary.BigEndian.Uint16(o[2:]))
			if !yield(dhcpv6.OptionCode(binary.BigEndian.Uint16(o)), o[optionHeader:n:n]) {
				return
			}
			o = o[n:]
		}
	}
}

// find returns the value of the first option of a code, never nil when found.
func (o options) find(code dhcpv6.OptionCode) ([]byte, bool) {
	for c, v := range o.all() {
		if c == code {
			return v, true
		}
	}
	return nil, false
}

// add appends an option.
func (o *options) add(code dhcpv6.OptionCode, value ...[]byte) {
	at := o.begin(code)
	for _, v := range value {
		*o = append(*o, v...)
	}
	o.end(at)
}

// begin starts an option whose value is appended next, until end is called with
// what begin returned.
func (o *options) begin(code dhcpv6.OptionCode) (at int) {
	*o = binary.BigEndian.AppendUint16(*o, uint16(code))
	*o = append(*o, 0, 0)
	return len(*o)
}

func (o *options) end(at int) {
	binary.BigEndian.PutUint16((*o)[at-2:], uint16(len(*o)-at))
}
