package inventory_test

import "testing"

// TestLabelLines: each label can be written as key=value. What a machine has from before is
// no reason to give it no config.
func TestLabelLines(t *testing.T) {
	for _, c := range []struct {
		key, value string
		ok         bool
	}{
		{"rack", "a1", true}, {"rack", "", true}, {"a b", "c=d e", true}, {"a=b", "c", false}, {" a", "b", false}, {"a\n", "b", false}, {"a", "b ", false}, {"a", "b\nc", false}, {"a", "\x00", false},
	} {
		m := machine(1)
		m.Address = subnets()[0].Machines.First
		m.Labels = map[string]string{c.key: c.value}
		if err := m.CheckLabelLines(); (err == nil) != c.ok {
			t.Errorf("%q: %q: %v", c.key, c.value, err)
		}
		if err := m.Validate(); err != nil {
			t.Errorf("%q: %q: %v", c.key, c.value, err)
		}
	}
}
