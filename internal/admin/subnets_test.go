package admin

import (
	"fmt"
	"testing"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// withLeases is a rack of two subnets, with an address of each kind in the first: cp-1's
// own and a second one, a stranger's, a declined one, and that of a machine that is gone.
func withLeases(t *testing.T) *rig {
	r := seed(t, Config{})
	first := r.keeper.Subnets()[0]
	first.Pool = inventory.Range{First: addr("2001:db8::1:0:0:0"), Last: addr("2001:db8::ffff:ffff:ffff:ffff")}
	first.Strangers, first.Gateway = true, addr("fe80::1")
	first.Reserved = []inventory.Range{{First: addr("2001:db8::1000"), Last: addr("2001:db8::100f")}}
	second := inventory.Subnet{Name: "far", Prefix: prefixes("2001:db8:1::/64")[0], Relays: prefixes("2001:db8:1::1/128"), Preferred: first.Preferred, Valid: first.Valid}
	if err := r.keeper.SetSubnets(t.Context(), []inventory.Subnet{first, second}); err != nil {
		t.Fatal(err)
	}
	r.must(201, "POST", "/api/v1/machines", `{"name":"gone","macs":["52-54-00-00-00-0e"],"role":"worker","subnet":"rack"}`, nil)
	r.must(204, "DELETE", "/api/v1/machines/gone?force=true", "", nil)
	r.must(201, "POST", "/api/v1/machines", `{"name":"w-far","macs":["52-54-00-00-00-0f"],"role":"worker","address":"2001:db8:1::9"}`, nil)
	v, err := r.keeper.Machine(t.Context(), "cp-1")
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range []inventory.Binding{
		{MAC: v.Machine.BootMAC(), Client: inventory.FirmwareStack, Machine: "cp-1", Stable: v.Machine.Address},
		{MAC: "52:54:00:00:00:01", Client: inventory.OperatingSystem},
		{MAC: "52:54:00:00:00:02", Client: inventory.OperatingSystem},
	} {
		b.Subnet, b.Commit, b.DUID = &r.keeper.Subnets()[0], true, []byte{0, byte(i)}
		lease, err := r.keeper.Bind(t.Context(), b)
		if err == nil && i == 2 {
			err = r.keeper.Decline(t.Context(), b, addrs(lease.Address.String()))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func TestSubnets(t *testing.T) {
	r := withLeases(t)
	var got api.List[api.Subnet]
	r.must(200, "GET", "/api/v1/subnets", "", &got)
	if len(got.Items) != 2 || got.Next != "" {
		t.Fatalf("%+v", got)
	}
	rack, far := got.Items[0], got.Items[1]
	if want := (api.AddressCounts{Reserved: 1, Second: 1, Leased: 1, Declined: 1, Left: 1}); rack.Used != want {
		t.Errorf("rack uses %+v", rack.Used)
	}
	if rack.Name != "rack" || rack.Prefix != "2001:db8::/64" || rack.Gateway != "fe80::1" || !rack.Strangers || rack.Adopt || len(rack.Reserved) != 1 || rack.Reserved[0] != "2001:db8::1000-2001:db8::100f" {
		t.Errorf("%+v", rack)
	}
	if len(rack.Ranges) != 2 || rack.Ranges[0].For != "machines" || rack.Ranges[1].For != "pool" {
		t.Fatalf("%+v", rack.Ranges)
	}
	machines, pool := rack.Ranges[0], rack.Ranges[1]
	if machines.Size != "4096" || machines.Free != "4078" || machines.Slices != 256 { // 16 are reserved and two used
		t.Errorf("machines: %+v", machines)
	}
	if pool.Size != "18446462598732840960" || pool.Free != "18446462598732840957" || pool.Slices != 256 {
		t.Errorf("pool: %+v", pool)
	}
	var sum api.AddressCounts
	for _, p := range append(machines.Picture, pool.Picture...) {
		sum.Reserved += p.Used.Reserved
		sum.Second += p.Used.Second
		sum.Leased += p.Used.Leased
		sum.Declined += p.Used.Declined
		sum.Left += p.Used.Left
	}
	if sum != rack.Used {
		t.Errorf("the pictures have %+v", sum)
	}
	if want := (api.AddressCounts{Reserved: 1}); far.Used != want || len(far.Ranges) != 0 || len(far.Relays) != 1 {
		t.Errorf("%+v", far)
	}
}

func TestAddresses(t *testing.T) {
	r := withLeases(t)
	var all []api.UsedAddress
	for after := ""; ; {
		var page api.List[api.UsedAddress]
		r.must(200, "GET", "/api/v1/subnets/rack/addresses?limit=2&after="+after, "", &page)
		all = append(all, page.Items...)
		if after = page.Next; after == "" {
			break
		}
		if len(page.Items) != 2 {
			t.Fatalf("%+v", page)
		}
	}
	kinds := map[string]api.UsedAddress{}
	for i, u := range all {
		if i > 0 && !addr(all[i-1].Address).Less(addr(u.Address)) {
			t.Errorf("%s comes after %s", u.Address, all[i-1].Address)
		}
		if u.Until.IsZero() != (u.Kind == "reserved") {
			t.Errorf("%+v", u)
		}
		kinds[u.Kind] = u
	}
	if len(all) != 5 || len(kinds) != 5 || kinds["reserved"].Machine != "cp-1" || kinds["second"].Machine != "cp-1" || kinds["leased"].MAC != "52:54:00:00:00:01" ||
		kinds["leased"].DUID != "0001" || kinds["declined"].MAC != "52:54:00:00:00:02" || kinds["left"].Machine != "gone" {
		t.Errorf("%+v", all)
	}
	var far api.List[api.UsedAddress]
	r.must(200, "GET", "/api/v1/subnets/far/addresses", "", &far)
	if len(far.Items) != 1 || far.Items[0].Machine != "w-far" {
		t.Errorf("%+v", far)
	}
	r.must(404, "GET", "/api/v1/subnets/near/addresses", "", nil)
	r.must(422, "GET", "/api/v1/subnets/rack/addresses?after=x", "", nil)
}

// TestDiscoveredSuggests: a discovered NIC comes with what to register it as, and
// registered so it is that.
func TestDiscoveredSuggests(t *testing.T) {
	r := seed(t, Config{})
	for i := range 2 {
		e := inventory.Event{Kind: inventory.Solicited, MAC: inventory.MAC("52:54:00:00:00:1" + string(rune('0'+i))), Client: inventory.FirmwarePXE, Subnet: "rack"}
		if _, err := r.keeper.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	var got api.List[api.Stranger]
	r.must(200, "GET", "/api/v1/discovered", "", &got)
	if len(got.Items) != 2 || got.Items[0].Suggestion.Name != "node-1" || got.Items[1].Suggestion.Name != "node-2" || got.Items[0].Suggestion.Subnet != "rack" {
		t.Fatalf("%+v", got)
	}
	for _, st := range got.Items {
		var m api.Machine
		r.must(201, "POST", "/api/v1/machines", mustJSON(t, api.MachineSpec{Name: st.Suggestion.Name, MACs: []string{st.MAC}, Role: "worker", Address: st.Suggestion.Address}), &m)
		if m.Address != st.Suggestion.Address || m.Address == "" {
			t.Errorf("%+v became %+v", st, m)
		}
	}
}

// TestDiscoveredByMAC: one that the list has no suggestion for is asked for by its MAC.
func TestDiscoveredByMAC(t *testing.T) {
	r := seed(t, Config{})
	for i := range inventory.MaxSuggested + 3 {
		e := inventory.Event{
			Kind: inventory.Solicited, MAC: inventory.MAC(fmt.Sprintf("52:54:00:00:01:%02x", i)), Client: inventory.FirmwarePXE, Subnet: "rack",
			Time: time.Now().Add(-time.Duration(i) * time.Minute),
		}
		if _, err := r.keeper.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	var all api.List[api.Stranger]
	r.must(200, "GET", "/api/v1/discovered", "", &all)
	if len(all.Items) != inventory.MaxSuggested+3 {
		t.Fatalf("%d", len(all.Items))
	}
	for i, st := range all.Items {
		if suggested := st.Suggestion != (api.Suggestion{}); suggested != (i < inventory.MaxSuggested) {
			t.Errorf("%d: %+v", i, st.Suggestion)
		}
	}
	for _, i := range []int{0, 1, inventory.MaxSuggested, inventory.MaxSuggested + 2} {
		var one api.List[api.Stranger]
		want := all.Items[i]
		r.must(200, "GET", "/api/v1/discovered?mac="+want.MAC, "", &one)
		if len(one.Items) != 1 || one.Items[0].MAC != want.MAC || one.Items[0].Suggestion.Name == "" || one.Items[0].Suggestion.Address == "" {
			t.Fatalf("%d: %+v", i, one)
		}
		if i < inventory.MaxSuggested && one.Items[0].Suggestion != want.Suggestion {
			t.Errorf("%d: alone %+v, in the list %+v", i, one.Items[0].Suggestion, want.Suggestion)
		}
	}
	var none api.List[api.Stranger]
	if r.must(200, "GET", "/api/v1/discovered?mac=52:54:00:00:99:99", "", &none); len(none.Items) != 0 {
		t.Errorf("%+v", none)
	}
	r.must(422, "GET", "/api/v1/discovered?mac=x", "", nil)
}
