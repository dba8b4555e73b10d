package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Suggestion is how a stranger could be registered.
type Suggestion struct {
	Name    string
	Subnet  string     // empty: it was seen on none that there is
	Address netip.Addr // invalid: the subnet has none to allocate. Nothing is reserved
}

// maxStems is how many kinds of names are tried for a suggestion, each with a look at a machine.
const maxStems = 8

// MaxSuggested is for how many strangers of a list there are suggestions: each takes up to
// some thousand looks at addresses, and anybody on a segment can make strangers.
const MaxSuggested = 64

// Suggest returns a name and an address for each of the first MaxSuggested of a list of
// strangers, no two the same, and nothing for the others. The address is the one that
// registering would allocate; after the first that finds its subnet full, others of that
// subnet get none.
//
// The name is the port that a relay heard the stranger on, where that is one as people
// give them, such as rack3-u7: a DNS label with a letter, a hyphen and a number at its
// end, of this stranger only. Else it is the next of the numbered names that most
// machines have, as far as they are not those of control planes: w-7 after w-6, w-07 after
// w-06; node-1 is the first where there are none.
func (k *Keeper) Suggest(ctx context.Context, list []Stranger) ([]Suggestion, error) {
	out := make([]Suggestion, len(list))
	if len(list) == 0 {
		return out, nil
	}
	taken := k.macs.machines()
	next := numbered(taken, func(name string) bool {
		v, err := k.Machine(ctx, name)
		return err == nil && v.Machine.Role == ControlPlane
	})
	ports := map[string]int{}
	for i := range list {
		ports[list[i].Port]++
	}
	promised := map[netip.Addr]bool{}
	full := map[string]bool{} // subnets
	subnets := k.Subnets()
	for i := range min(len(list), MaxSuggested) {
		st, s := &list[i], &out[i]
		if s.Name = st.Port; ports[st.Port] > 1 || !namesPort(st.Port) || taken[st.Port] {
			for s.Name = next(); taken[s.Name]; {
				s.Name = next()
			}
		}
		taken[s.Name] = true
		at := slices.IndexFunc(subnets, func(n Subnet) bool { return n.Name == st.Subnet })
		if at < 0 {
			continue
		}
		if s.Subnet = st.Subnet; full[s.Subnet] {
			continue
		}
		address, err := k.allocate(ctx, &subnets[at], &Machine{Name: s.Name, MACs: []MAC{st.MAC}}, promised)
		switch {
		case errors.Is(err, ErrFull):
			full[s.Subnet] = true
			continue
		case err != nil:
			return nil, err
		}
		s.Address, promised[address] = address, true
	}
	return out, nil
}

// namesPort reports whether people gave a port its name.
func namesPort(port string) bool {
	_, number := cutNumber(port)
	return number != "" && strings.Contains(port, "-") && strings.ContainsFunc(port, func(r rune) bool { return r >= 'a' && r <= 'z' }) && CheckName("port", port) == nil
}

// cutNumber splits a name before the number at its end, which is empty if it has none
// of at most nine digits.
func cutNumber(name string) (stem, number string) {
	stem = strings.TrimRight(name, "0123456789")
	if number = name[len(stem):]; len(number) > 9 || stem == "" {
		return name, ""
	}
	return stem, number
}

// numbered returns the names that come after the numbered ones which most have; of
// two stems that as many have, after the one that sorts last. A stem is left out whose last
// machine is a control plane: most machines are workers.
func numbered(names map[string]bool, controlPlane func(name string) bool) (next func() string) {
	type series struct {
		count, highest, width int
		last                  string
	}
	of := map[string]*series{"node-": {}}
	for name := range names {
		stem, number := cutNumber(name)
		n, err := strconv.Atoi(number)
		if err != nil || len(stem) > 40 {
			continue
		}
		s := of[stem]
		if s == nil {
			s = &series{}
			of[stem] = s
		}
		if s.count++; n >= s.highest {
			s.highest, s.width, s.last = n, len(number), name
		}
	}
	stems := slices.SortedFunc(maps.Keys(of), func(a, b string) int {
		return cmp.Or(cmp.Compare(of[b].count, of[a].count), cmp.Compare(b, a))
	})
	stem := "node-"
	for _, candidate := range stems[:min(len(stems), maxStems)] {
		if last := of[candidate].last; last == "" || !controlPlane(last) {
			stem = candidate
			break
		}
	}
	s := of[stem]
	return func() string {
		s.highest++
		return fmt.Sprintf("%s%0*d", stem, s.width, s.highest)
	}
}
