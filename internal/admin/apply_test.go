package admin

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// randomRack declares clusters and machines that are all in order.
func randomRack(rng *rand.Rand) api.Rack {
	var rack api.Rack
	pick := func(options ...string) string { return options[rng.IntN(len(options))] }
	for c := range rng.IntN(3) {
		spec := api.ClusterSpec{
			Name: fmt.Sprintf("c%d", c), Endpoint: fmt.Sprintf("https://[2001:db8::%d]:6443", c+1),
			TalosVersion: pick("", "v1.13.6", "v1.12.1"), Addressing: pick("", "static", "dhcpv6"),
		}
		if rng.IntN(2) == 0 {
			spec.PodSubnets = []string{pick("fd00:1::/56", "FD00:1:0::/56")}
			spec.DNS = []string{pick("2001:db8::53", "2001:DB8:0::53")}
			spec.Install.DiskSelector = map[string]string{"size": pick(">1GB", ">2GB")}
			spec.Patches = []string{pick("a: b", "c: d\n")}
		}
		rack.Clusters = append(rack.Clusters, spec)
	}
	for m := range rng.IntN(6) {
		spec := api.MachineSpec{
			Name: fmt.Sprintf("m%d", m), MACs: []string{fmt.Sprintf(pick("52-54-00-AA-00-%02x", "525400aa00%02x", "52:54:00:aa:00:%02x"), m)},
			Role: pick("worker", "controlplane"),
		}
		if len(rack.Clusters) > 0 && rng.IntN(3) > 0 {
			spec.Cluster = rack.Clusters[rng.IntN(len(rack.Clusters))].Name
		}
		if rng.IntN(2) == 0 {
			spec.Address = fmt.Sprintf(pick("2001:db8::%d", "2001:0db8::0:%d"), 100+m)
			spec.Labels = map[string]string{"row": pick("a", "b")}
			spec.Install.Disk = pick("/dev/sda", "")
			spec.KernelArgs = []string{}
		}
		rack.Machines = append(rack.Machines, spec)
	}
	return rack
}

// TestApplyTwice: whatever was there, a second apply changes nothing, a dry run
// says what the real one does and writes nothing, and an export applies as
// unchanged.
func TestApplyTwice(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 7))
		r := newRig(t, Config{})
		for range 3 {
			body := mustJSON(t, randomRack(rng))
			rev := r.store.Rev()
			var dry, first, second api.Applied
			r.must(200, "POST", "/api/v1/apply?createClusters=true&dryRun=true", body, &dry)
			if r.store.Rev() != rev {
				t.Fatalf("seed %d: a dry run wrote", seed)
			}
			r.must(200, "POST", "/api/v1/apply?createClusters=true", body, &first)
			dry.DryRun = false
			if !reflect.DeepEqual(dry, first) {
				t.Fatalf("seed %d: the dry run said\n%+v\nand it did\n%+v", seed, dry, first)
			}
			rev = r.store.Rev()
			r.must(200, "POST", "/api/v1/apply", body, &second)
			if second.Created+second.Updated != 0 || second.Unchanged != len(second.Changes) || r.store.Rev() != rev {
				t.Fatalf("seed %d: the second apply of %s changed %+v", seed, body, second)
			}
			r.must(200, "POST", "/api/v1/apply", r.must(200, "GET", "/api/v1/export", "", nil).Body.String(), &second)
			if second.Created+second.Updated != 0 {
				t.Fatalf("seed %d: the export is a change: %+v", seed, second)
			}
		}
	}
}

func TestApplySaysWhatDiffers(t *testing.T) {
	r := seed(t, Config{})
	made := r.talos.made
	var got api.Applied
	r.must(200, "POST", "/api/v1/apply", `{
		"clusters": [{"name":"rack1","endpoint":"https://[2001:db8::2]:6443","install":{"disk":"/dev/sda"}}],
		"machines": [{"name":"cp-1","macs":["525400123456"],"role":"controlplane","cluster":"rack1","labels":{"row":"b","u":"1"}},
		             {"name":"w-1","macs":["525400000001"],"role":"worker"}]}`, &got)
	want := []api.Change{
		{Kind: "cluster", Name: "rack1", Action: "update", Fields: []api.FieldChange{
			{Field: "endpoint", From: "https://[2001:db8::1]:6443", To: "https://[2001:db8::2]:6443"},
			{Field: "install.disk", To: "/dev/sda"},
		}},
		{Kind: "machine", Name: "cp-1", Action: "update", Fields: []api.FieldChange{
			{Field: "labels.row", From: "a", To: "b"}, {Field: "labels.u", To: "1"},
		}},
		{Kind: "machine", Name: "w-1", Action: "create", Fields: []api.FieldChange{
			{Field: "macs", To: []any{"52:54:00:00:00:01"}}, {Field: "role", To: "worker"},
		}},
	}
	if !reflect.DeepEqual(got.Changes, want) || got.Created != 1 || got.Updated != 2 {
		t.Errorf("%s", mustJSON(t, got))
	}
	if r.talos.made != made {
		t.Error("an update made secrets")
	}
}

// TestApplyRefusesAllAtOnce: every mistake is named with its place, and nothing
// is written.
func TestApplyRefusesAllAtOnce(t *testing.T) {
	r := seed(t, Config{})
	rev := r.store.Rev()
	rec := r.must(422, "POST", "/api/v1/apply?createClusters=true", `{
		"clusters": [{"name":"new","endpoint":"http://a:6443"},
		             {"name":"rack1","endpoint":"https://[2001:db8::1]:6443","patches":["bad"]},
		             {"name":"rack1","endpoint":"https://[2001:db8::1]:6443"},
		             {"name":"old","endpoint":"https://a:6443","talosVersion":"v0.1.0"}],
		"machines": [{"name":"w-0","macs":["525400000001"],"role":"worker","cluster":"new"},
		             {"name":"w-1","macs":["x","525400000002"],"role":"worker","address":"y"},
		             {"name":"w-2","macs":["525400000001"],"role":"worker"},
		             {"name":"w-3","macs":["525400123456"],"role":"worker"},
		             {"name":"w-4","macs":["525400000004"],"role":"worker","cluster":"nowhere"},
		             {"name":"w-4","macs":["525400000005"],"role":"worker"},
		             {"name":"W 6","macs":["525400000006"],"role":"worker"},
		             {"name":"w-7","macs":["525400000007"],"role":"worker","cluster":"new","address":"2001:dead::7"}]}`, nil)
	var p api.Problem
	if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range p.Errors {
		got = append(got, d.Location)
	}
	want := []string{
		"body.clusters[0].endpoint", "body.clusters[1].patches[0]", "body.clusters[2].name", "body.clusters[3].talosVersion",
		"body.machines[1].macs[0]", "body.machines[1].address", "body.machines[2].macs[0]", "body.machines[3].macs[0]",
		"body.machines[4].cluster", "body.machines[5].name", "body.machines[6].name", "body.machines[7].address",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %s\nwant %s\n%s", strings.Join(got, "\n    "), strings.Join(want, "\n     "), rec.Body)
	}
	if r.store.Rev() != rev {
		t.Error("it wrote all the same")
	}
}

// TestApplyCreatesNoCluster unless it is told to: not on a dry run, and not for
// a machine that names it.
func TestApplyCreatesNoCluster(t *testing.T) {
	const body = `{"clusters":[` + rack1 + `,{"name":"b","endpoint":"http://b:6443"}],"machines":[` + cp1 + `]}`
	for query, want := range map[string][]string{
		"": {
			"body.clusters[0].name: cluster rack1 does not exist and apply creates none: secrets are made once (provisiond cluster create rack1 …, or --create-clusters)",
			"body.clusters[1].endpoint", "body.clusters[1].name: cluster b does not exist",
		},
		"?dryRun=true":                      {"body.clusters[0].name", "body.clusters[1].endpoint", "body.clusters[1].name"},
		"?createClusters=false":             {"body.clusters[0].name", "body.clusters[1].endpoint", "body.clusters[1].name"},
		"?createClusters=true":              {"body.clusters[1].endpoint"},
		"?createClusters=true&dryRun=true":  {"body.clusters[1].endpoint"},
		"?createClusters=yes&dryRun=please": {"query.dryRun", "query.createClusters"},
	} {
		t.Run(query, func(t *testing.T) {
			r := newRig(t, Config{})
			wantErrors(t, r.must(422, "POST", "/api/v1/apply"+query, body, nil), want...)
			if query == "" && r.talos.made > 0 {
				t.Error("it made secrets")
			}
			if r.store.Rev() != 0 {
				t.Error("it wrote all the same")
			}
		})
	}
	r := newRig(t, Config{})
	r.must(200, "POST", "/api/v1/apply?createClusters=true", `{"clusters":[`+rack1+`],"machines":[`+cp1+`]}`, nil)
	r.must(200, "POST", "/api/v1/apply", `{"clusters":[`+rack1+`],"machines":[`+cp1+`]}`, nil)
	if r.talos.made != 1 {
		t.Errorf("%d secrets were made for one cluster", r.talos.made)
	}
}

// wantErrors wants the answer's errors to begin so, and no other.
func wantErrors(t *testing.T, rec *httptest.ResponseRecorder, want ...string) {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil {
		t.Fatal(err)
	}
	ok := len(p.Errors) == len(want)
	for i := 0; ok && i < len(want); i++ {
		ok = strings.HasPrefix(p.Errors[i].Location+": "+p.Errors[i].Message, want[i])
	}
	if !ok {
		t.Errorf("want %s\ngot %s", strings.Join(want, "\n     "), rec.Body)
	}
}

// TestApplyChecksAddressesFirst: what the store would refuse of the second
// machine keeps the first from being written.
func TestApplyChecksAddressesFirst(t *testing.T) {
	const good = `{"name":"w-1","macs":["525400000001"],"role":"worker","cluster":"new"}`
	for name, tc := range map[string]struct{ machine, want string }{
		"outside":           {`"name":"w-2","macs":["525400000002"],"address":"2001:dead::1"`, "body.machines[1].address: 2001:dead::1 lies in no subnet"},
		"outside, new home": {`"name":"w-2","macs":["525400000002"],"address":"2001:dead::1","cluster":"new"`, "body.machines[1].address: 2001:dead::1 lies in no subnet"},
		"of the router":     {`"name":"w-2","macs":["525400000002"],"address":"2001:db8::"`, "body.machines[1].address: 2001:db8:: is reserved"},
		"elsewhere":         {`"name":"w-2","macs":["525400000002"],"address":"2001:db8::9","subnet":"other"`, "body.machines[1].address: 2001:db8::9 lies in subnet rack"},
		"no subnet":         {`"name":"w-2","macs":["525400000002"],"subnet":"other"`, "body.machines[1].subnet: other is not a subnet"},
		"moved out":         {`"name":"cp-1","macs":["525400123456"],"cluster":"rack1","address":"2001:dead::1"`, "body.machines[1].address: 2001:dead::1 lies in no subnet"},
	} {
		t.Run(name, func(t *testing.T) {
			r := seed(t, Config{})
			rev := r.store.Rev()
			body := `{"clusters":[{"name":"new","endpoint":"https://[2001:db8::2]:6443"}],"machines":[` + good + `,{"role":"worker",` + tc.machine + `}]}`
			for _, query := range []string{"?createClusters=true&dryRun=true", "?createClusters=true"} {
				wantErrors(t, r.must(422, "POST", "/api/v1/apply"+query, body, nil), tc.want)
			}
			if r.store.Rev() != rev {
				t.Error("it wrote all the same")
			}
		})
	}
}

// TestApplyToAFullSubnet is an error before anything is written, also if a
// machine earlier in the request gives up its address: it may still use it.
func TestApplyToAFullSubnet(t *testing.T) {
	r := seed(t, Config{})
	v, err := r.keeper.Machine(t.Context(), "cp-1")
	if err != nil {
		t.Fatal(err)
	}
	for a := addr("2001:db8::1000"); a != addr("2001:db8::2000"); a = a.Next() {
		if key := (inventory.Key{Bucket: inventory.BucketAddresses, ID: a.String()}); a != v.Machine.Address {
			if _, _, err := r.store.Commit(t.Context(), inventory.Commit{Writes: []inventory.Write{{Key: key, Value: []byte("another")}}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	const w1 = `{"name":"w-1","macs":["525400000001"],"role":"worker"}`
	rev := r.store.Rev()
	wantErrors(t, r.must(507, "POST", "/api/v1/apply?dryRun=true", `{"machines":[`+w1+`]}`, nil), "body.machines[0].address: subnet rack")
	wantErrors(t, r.must(507, "POST", "/api/v1/apply", `{"machines":[{"name":"w-0","macs":["525400000002"],"role":"worker","address":"2001:db8::6"},`+w1+`]}`, nil),
		"body.machines[1].address: subnet rack")
	moved := strings.Replace(cp1, `"role"`, `"address":"2001:db8::5","role"`, 1)
	wantErrors(t, r.must(507, "POST", "/api/v1/apply", `{"machines":[`+moved+`,`+w1+`]}`, nil), "body.machines[1].address: subnet rack")
	if r.store.Rev() != rev {
		t.Error("it wrote all the same")
	}
	// Who knows that it is free may say so.
	r.must(200, "POST", "/api/v1/apply", `{"machines":[`+moved+`]}`, nil)
	r.must(200, "POST", "/api/v1/apply", `{"machines":[`+strings.Replace(w1, `"role"`, `"address":"`+v.Machine.Address.String()+`","role"`, 1)+`]}`, nil)
}

// TestApplyNamesWhatFailed: a write that the store refuses has its place too.
// Here the address of the second machine is the one that the first was given.
func TestApplyNamesWhatFailed(t *testing.T) {
	r := seed(t, Config{})
	const w1 = `{"name":"w-1","macs":["525400000001"],"role":"worker"}`
	var given api.Machine
	r.must(201, "POST", "/api/v1/machines", w1, &given)
	r.must(204, "DELETE", "/api/v1/machines/w-1", "", nil)
	wantErrors(t, r.must(409, "POST", "/api/v1/apply", `{"machines":[`+w1+`,
		{"name":"w-2","macs":["525400000002"],"role":"worker","address":"`+given.Address+`"}]}`, nil),
		"body.machines[1].address: "+given.Address+" belongs to machine w-1")
}

// FuzzBodies: no body makes the API fail by itself.
func FuzzBodies(f *testing.F) {
	f.Add("POST", "/api/v1/machines", cp1)
	f.Add("PUT", "/api/v1/machines/cp-1", cp1)
	f.Add("PATCH", "/api/v1/machines/cp-1", `{"labels":{"a":null},"install":7}`)
	f.Add("PATCH", "/api/v1/clusters/rack1", `{"podSubnets":["::/0"],"install":{"disk":null}}`)
	f.Add("POST", "/api/v1/apply?createClusters=true", `{"clusters":[`+rack1+`],"machines":[`+cp1+`,{"macs":[],"role":""}]}`)
	f.Add("POST", "/api/v1/clusters/import", `{"secrets":"cluster: {}"}`)
	f.Add("GET", "/api/v1/machines?label=%3D&limit=-1&q=%00", "")
	f.Fuzz(func(t *testing.T, method, path, body string) {
		if !slices.Contains([]string{"GET", "POST", "PUT", "PATCH", "DELETE"}, method) || !strings.HasPrefix(path, "/api/v1/") ||
			strings.Contains(path, "watch") || strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r >= 0x7f }) || strings.Contains(body, "explode") {
			return // not a request that says anything
		}
		r := seed(t, Config{})
		if rec := r.do(method, path, body); rec.Code >= 500 && rec.Code != 507 {
			t.Errorf("%d: %s\n%s", rec.Code, rec.Body, r.logs)
		}
	})
}
