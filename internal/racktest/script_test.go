package racktest

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// Each script ends as real iPXE ends it, and says what real iPXE would print.
func TestScripts(t *testing.T) {
	s := newSite(t)
	waited := 0
	s.handle = func(w http.ResponseWriter, r *http.Request) bool {
		switch r.URL.Path {
		case "/ok":
			w.Write([]byte("#!ipxe\necho chained ${more}\n"))
		case "/exit1":
			w.Write([]byte("#!ipxe\nexit 1\necho never\n"))
		case "/wait": // says to wait more often than scripts may be nested
			if waited++; waited%(2*maxChain) != 0 {
				w.Write([]byte("#!ipxe\nchain --replace --autofree /wait || echo never\necho nor this\n"))
			} else {
				w.Write([]byte("#!ipxe\necho waited\n"))
			}
		default:
			http.NotFound(w, r)
		}
		return true
	}
	for _, tc := range []struct{ name, script, says, fails string }{
		{"variables", "set a b c\necho ${a} ${net0/mac} ${mac} ${uuid} ${buildarch} [${ip}] [${nothing}]", "b c 52:54:00:00:00:01 52:54:00:00:00:01 00112233-4455-6677-8899-aabbccddeeff x86_64 [] []", ""},
		{"formats", "echo ${mac:hexhyp} ${net0/mac:hexraw}", "52-54-00-00-00-01 525400000001", ""},
		{"nested", "set x serial\necho ${${x}}", "SN-1", ""},
		{"or", "isset ${no} || echo unset", "unset", ""},
		{"and", "isset ${mac} && echo set", "set", ""},
		{"and or", "iseq a b && echo same || echo other", "other", ""},
		{"or and", "iseq a a || echo never && echo then", "then", ""},
		{"goto", "goto end\necho never\n:end\necho end", "end", ""},
		{"goto on failure", "chain /missing || goto fail\necho never\n:fail\necho failed", "failed", ""},
		{"loop", "set n a\n:again\nisset ${m} && goto out ||\nset m 1\ngoto again\n:out\necho out", "out", ""},
		{"continued line", "echo one \\\ntwo", "one two", ""},
		{"comment", "# echo no\necho yes", "yes", ""},
		{"chain and back", "set more too\nchain /ok\necho back", "chained too|back", ""},
		{"exit", "echo a\nexit\necho never", "a", ""},
		{"exit 1", "exit 1", "", "exits"},
		{"chained exit 1 is caught", "chain /exit1 || echo caught", "caught", ""},
		{"replaced, again and again", "chain --replace /wait\necho never", "waited", ""},
		{"chained and replaced there", "chain /wait\necho back", "waited|back", ""},
		{"exit 1 of what replaced it is not caught", "chain --replace /exit1 || echo caught", "", "exits"},
		{"no replacement", "chain --replace /missing || echo caught", "caught", ""},
		{"failing command ends it", "isset ${no}\necho never", "", "failed"},
		{"unknown command", "frobnicate", "", "command not found"},
		{"unknown command is an error to ||", "frobnicate || echo old iPXE", "old iPXE", ""},
		{"no such label", "goto nowhere", "", "no such label"},
		{"endless", ":a\ngoto a", "", "more than"},
		{"IPv4", "ifconf -c dhcp net0 || echo no IPv4", "no IPv4", ""},
		{"boot without kernel", "boot", "", "no kernel"},
		{"https", "chain https://[::1]/x", "", "not supported"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t, s, nil)
			b := &boot{Machine: m, ctx: t.Context(), cut: func(error) {}, host: m.opts.Fabric.NewHost("x")}
			x := &ipxe{boot: b, settings: map[string]string{}, images: map[string]*image{}}
			at, err := url.Parse(s.base + "/script.ipxe")
			if err != nil {
				t.Fatal(err)
			}
			p, err := parse(at, []byte("#!ipxe\n"+tc.script+"\n"))
			if err != nil {
				t.Fatal(err)
			}
			err = x.script(t.Context(), p)
			var said []string
			for _, e := range m.timeline.Entries() {
				if text, ok := strings.CutPrefix(e.Note, "iPXE says: "); ok {
					said = append(said, text)
				}
			}
			if got := strings.Join(said, "|"); got != tc.says {
				t.Errorf("said %q, want %q", got, tc.says)
			}
			if tc.fails == "" && err != nil || tc.fails != "" && (err == nil || !strings.Contains(err.Error(), tc.fails)) {
				t.Errorf("ended with %v, want %q", err, tc.fails)
			}
		})
	}
}

func FuzzScript(f *testing.F) {
	f.Add("chain x || goto y\n:y\nset a ${b:c}")
	f.Add("echo ${${${")
	f.Add("a && b || c && ||")
	f.Add("ifconf -c")
	f.Fuzz(func(t *testing.T, script string) {
		m, err := NewMachine(MachineOptions{MACs: testMACs, Net: &Net{}, Fabric: NewFabric(), Peers: &Registry{}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // nothing may reach the network
		b := &boot{Machine: m, ctx: ctx, cut: func(error) {}, host: m.opts.Fabric.NewHost("x")}
		x := &ipxe{boot: b, settings: map[string]string{}, images: map[string]*image{}}
		p, err := parse(&url.URL{Scheme: "http", Host: "[::1]:1", Path: "/"}, []byte("#!ipxe\n"+script))
		if err != nil {
			t.Fatal(err)
		}
		if err = x.script(ctx, p); errors.Is(err, ErrPowerCut) {
			t.Error("a script cut the power")
		}
	})
}
