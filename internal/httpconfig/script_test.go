package httpconfig

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

const scriptPath = "/boot/52:54:00:00:00:01/boot.ipxe"

func TestScripts(t *testing.T) {
	const again = "http://[2001:db8::1]:8080/boot/52:54:00:00:00:01/boot.ipxe?arch=amd64"
	install := func(number, again string) string {
		return `#!ipxe
echo provisiond: cp-1 starts Talos v1.13.6: install order 1 is outstanding
kernel http://[2001:db8::1]:8080/image/v1.13.6/default/amd64/kernel?mac=52:54:00:00:00:01&boot=` + number + ` initrd=initramfs slab_nomerge talos.config=https://[2001:db8::1]:8443/config/52:54:00:00:00:01/` + token + ` || goto failed
initrd http://[2001:db8::1]:8080/image/v1.13.6/default/amd64/initramfs?mac=52:54:00:00:00:01&boot=` + number + ` || goto failed
boot || goto failed
:failed
echo provisiond: could not start Talos, asking again in 10 seconds
imgfree
sleep 10
chain --replace --autofree ` + again + ` || goto failed
`
	}
	leave := func(reason string) string { return "#!ipxe\necho provisiond: " + reason + "\nsleep 3\nexit 1\n" }
	retry := func(reason string) string {
		return "#!ipxe\n:again\necho provisiond: " + reason + "\nsleep 30\nchain --replace --autofree " + again + " || goto again\n"
	}
	for _, c := range []struct {
		name, target string
		spoil        func(r *rack)
		script       string
		events       []string
	}{
		{
			"install", scriptPath + "?arch=x86_64", nil,
			install("1", again), []string{"script-served/0/install"},
		}, {
			"install, by everything known of it", scriptPath + "?arch=x86_64&uuid=00112233-4455-6677-8899-AABBCCDDEEFF&serial=SN%201", nil,
			install("1", again+"&uuid=00112233-4455-6677-8899-aabbccddeeff&serial=SN+1"), []string{"script-served/0/install"},
		}, {
			"install, nothing known", scriptPath, nil,
			install("1", strings.TrimSuffix(again, "?arch=amd64")), []string{"script-served/0/install"},
		}, {
			"install, in the boot that DHCPv6 began", scriptPath + "?arch=amd64",
			func(r *rack) { r.boots(bootNow(41, token)) },
			install("41", again), []string{"script-served/0/install"},
		}, {
			"installed", scriptPath + "?arch=x86_64",
			func(r *rack) { r.keeper.view.Facts.Install.Done = 1 },
			leave("cp-1: installed (order 1, 0001-01-01 00:00:00Z)"), []string{"script-served/0/disk"},
		}, {
			"no cluster", scriptPath + "?arch=x86_64",
			func(r *rack) { r.keeper.view.Machine.Cluster, r.keeper.view.Cluster = "", nil },
			leave("cp-1: cp-1 belongs to no cluster"), []string{"script-served/0/hold"},
		}, {
			"no image", scriptPath + "?arch=x86_64",
			func(r *rack) { r.keeper.view.Image = nil },
			leave("cp-1: boot image v1.13.6/default/amd64 is not imported"), []string{"script-served/0/hold"},
		}, {
			"no image for the architecture", scriptPath + "?arch=arm64", nil,
			leave("cp-1: boot image v1.13.6/default/arm64 is not imported"), []string{"script-served/0/hold"},
		}, {
			"a stranger", "/boot/52-54-00-00-00-99/boot.ipxe?arch=x86_64", nil,
			leave("52:54:00:00:00:99: this MAC is not registered"), []string{"script-served/0/hold"},
		}, {
			"32 bits", scriptPath + "?arch=i386", nil,
			leave("52:54:00:00:00:01: this iPXE is for an architecture that Talos does not run on? boot the one for x86_64 or arm64"), []string{"script-served/0/hold"},
		}, {
			"config broken", scriptPath + "?arch=x86_64",
			func(r *rack) { r.configs.err = errors.New("install.disk: ${disk} || reboot\n; # is no disk") },
			retry("cp-1 has no valid config: install.disk: ??disk? ?? reboot ? ? is no disk"), []string{"script-served/0/hold"},
		}, {
			"kernel line broken", scriptPath + "?arch=x86_64",
			func(r *rack) { r.configs.lineErr = errors.New("too long") },
			retry("cp-1 has no valid config: too long"), []string{"script-served/0/install", "script-served/0/hold"},
		}, {
			"kernel line that iPXE would expand", scriptPath + "?arch=x86_64",
			func(r *rack) { r.configs.line = "talos.config=http://x?u=${uuid}" },
			retry("cp-1 has no valid config: kernelArgs: the kernel line has ?? in it, which iPXE replaces (write the value itself)"), []string{"script-served/0/install", "script-served/0/hold"},
		}, {
			"inventory is out", scriptPath + "?arch=x86_64",
			func(r *rack) { r.keeper.viewErr = errors.New("gone") },
			retry("the inventory does not answer"), []string{},
		}, {
			"inventory cannot be written", scriptPath + "?arch=x86_64",
			func(r *rack) { r.keeper.recordErr = inventory.ErrFull },
			retry("cp-1: the inventory cannot be written"), []string{},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRack(t)
			if c.spoil != nil {
				c.spoil(r)
			}
			w := r.ask("GET", c.target, stable)
			if w.Code != http.StatusOK || w.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("status %d, headers %v", w.Code, w.Header())
			}
			if got := w.Body.String(); got != c.script {
				t.Errorf("script is\n%s\nwant\n%s", got, c.script)
			}
			if got := r.keeper.kinds(); !slices.Equal(got, c.events) {
				t.Errorf("recorded %v, want %v", got, c.events)
			}
			for _, e := range r.keeper.recorded() {
				if e.MAC == "" || e.Client != inventory.IPXE || e.Peer != stable || e.Time.IsZero() || e.Cluster != "" || e.Message == "" {
					t.Errorf("event is %+v", e)
				}
			}
			if strings.Contains(r.log.String(), token) {
				t.Errorf("a token was logged: %s", r.log)
			}
		})
	}
}

func TestFixedScripts(t *testing.T) {
	r := newRack(t)
	const own = "http://[2001:db8::1]:8080/boot/${net0/mac}/boot.ipxe?arch=${buildarch}&uuid=${uuid}&serial=${serial:uristring}"
	if got, want := r.ask("GET", "/boot.ipxe", alien).Body.String(), "#!ipxe\nchain --replace --autofree "+own+"\n"; got != want {
		t.Errorf("/boot.ipxe is\n%s\nwant\n%s", got, want)
	}
	if got, want := r.ask("GET", "/loader/amd64/autoexec.ipxe", alien).Body.String(), "#!ipxe\nifconf -c ipv6 net0 || ifconf\nchain "+own+" || exit 1\n"; got != want {
		t.Errorf("autoexec.ipxe is\n%s\nwant\n%s", got, want)
	}
	if got := r.keeper.kinds(); len(got) != 0 {
		t.Errorf("recorded %v", got)
	}
}

// TestScriptLearns: what iPXE says of the machine is kept, junk is not.
func TestScriptLearns(t *testing.T) {
	for _, c := range []struct{ query, uuid, serial, arch string }{
		{"?arch=x86_64&uuid=00112233-4455-6677-8899-AABBCCDDEEFF&serial=SN%201", "00112233-4455-6677-8899-aabbccddeeff", "SN 1", "amd64"},
		{"?uuid=00000000-0000-0000-0000-000000000000&serial=", "", "", ""},
		{"?uuid=ffffffff-ffff-ffff-ffff-ffffffffffff", "", "", ""},
		{"?uuid=not-a-uuid&serial=" + strings.Repeat("x", 65), "", "", ""},
		{"?serial=%00%1b[31m&uuid=0011223344556677-8899-aabb-ccdd-eeff", "", "", ""},
		{"?%zz&&&;", "", "", ""},
	} {
		r := newRack(t)
		r.ask("GET", scriptPath+c.query, stable)
		e := r.keeper.recorded()[0]
		if e.UUID != c.uuid || e.Serial != c.serial || string(e.Arch) != c.arch {
			t.Errorf("%s: learnt %q, %q, %q", c.query, e.UUID, e.Serial, e.Arch)
		}
	}
}

// TestScriptRecordsFirst: the token is durable before it goes out.
func TestScriptRecordsFirst(t *testing.T) {
	r := newRack(t)
	rendered := 0
	r.keeper.onRecord = func(inventory.Event) {
		r.configs.mu.Lock()
		defer r.configs.mu.Unlock()
		rendered = r.configs.asked
	}
	w := r.ask("GET", scriptPath, stable)
	if rendered != 1 {
		t.Errorf("the config was made %d times before the boot was recorded, want once", rendered)
	}
	if !strings.Contains(w.Body.String(), r.keeper.view.Facts.Current().Token) {
		t.Error("the token in the script is not the recorded one")
	}
}

func TestCheckLine(t *testing.T) {
	for line, ok := range map[string]bool{
		"talos.platform=metal talos.config=http://[::1]/config/x?a=b&c=d ip=[::1]::[fe80::1]:64:n:enx525400000001:off": true,
		"a=$b {c} a=b||c a=#": true,
		"":                    false,
		"a=${net0/mac}":       false,
		"a || reboot":         false,
		"a && b":              false,
		"a ; b":               false,
		"a # b":               false,
		"a #b":                false,
		"a\nshell":            false,
		"a\tb":                false,
		"a=ü":                 false,
	} {
		if err := checkLine(line); (err == nil) != ok {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// FuzzPlain: no text that comes from elsewhere can be a command of a script.
func FuzzPlain(f *testing.F) {
	for _, s := range []string{"plain", "a\nshell", "${x:${y}}", "a || shell", "#", "ü\xff", strings.Repeat("x ", 1000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := plain(s)
		if len(got) > 300 || strings.ContainsAny(got, "\n\r$|&;#\\") {
			t.Errorf("%q becomes %q", s, got)
		}
		for _, script := range []string{leaveScript(s), retryScript(s, "http://x", 5)} {
			lines := strings.Split(script, "\n")
			want := strings.Split(leaveScript("x"), "\n")
			if strings.HasPrefix(lines[1], ":") {
				want = strings.Split(retryScript("x", "http://x", 5), "\n")
			}
			if len(lines) != len(want) {
				t.Errorf("%q changes the script to %q", s, script)
			}
		}
	})
}

// TestWipeScript: it is given once, and once more to who asks with its token; then
// comes the install. Its boot is given no config.
func TestWipeScript(t *testing.T) {
	r := newRack(t)
	r.keeper.change(func(v *inventory.View) {
		v.Facts.Install = inventory.Order{Ordered: 1, Done: 1}
		v.Facts.Reimage = inventory.Reimage{Order: inventory.Order{Ordered: 1}}
	})
	const path = scriptPath + "?arch=x86_64"
	if wait := r.ask("GET", path, stable).Body.String(); strings.Contains(wait, "kernel ") || !strings.Contains(wait, "sleep") || !r.keeper.view.Facts.AwaitsClearance() {
		t.Fatalf("before it is cleared it is told\n%s", wait)
	}
	r.keeper.clear(t)
	retry := "retry=" + token
	if other := r.ask("GET", path, stable).Body.String(); strings.Contains(other, "kernel ") {
		t.Fatalf("who does not come from the script of this boot is told\n%s", other)
	}
	r.keeper.clear(t) // that one began another boot
	first := r.ask("GET", path+"&"+retry, stable).Body.String()
	if !strings.Contains(first, " "+wipeArg+" ") && !strings.Contains(first, " "+wipeArg+"\n") || !strings.Contains(first, retry) {
		t.Fatalf("the first script is\n%s", first)
	}
	if f := r.keeper.view.Facts; !f.Reimage.Claimed() || f.Reimage.Via != inventory.ViaNetboot || f.Install.Ordered != 2 {
		t.Fatalf("the script went out, and the facts are %+v", f.Reimage)
	}
	if again := r.ask("GET", path+"&"+retry, stable).Body.String(); !strings.Contains(again, wipeArg) {
		t.Errorf("who could not start it gets\n%s", again)
	}
	if n := r.keeper.view.Facts.Reimage.Attempts; n != 1 {
		t.Errorf("it counts as %d tries", n)
	}
	r.config.Hold = time.Millisecond
	if code := r.ask("GET", configPath+token, stable).Code; code != http.StatusNoContent {
		t.Errorf("its boot is given a config: %d", code)
	}
	if other := r.ask("GET", path, stable).Body.String(); strings.Contains(other, wipeArg) || !strings.Contains(other, "kernel ") {
		t.Errorf("the next boot gets\n%s", other)
	}
	if late := r.ask("GET", path+"&"+retry, stable).Body.String(); strings.Contains(late, wipeArg) {
		t.Errorf("later, its token gets\n%s", late)
	}
}

// clear is word that the machine may be wiped.
func (k *keeper) clear(t *testing.T) {
	t.Helper()
	if _, err := k.Record(t.Context(), inventory.Event{Kind: inventory.ReimageCleared, Machine: k.view.Machine.Name, Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
}

// TestWipeIsClaimedOnce: of two requests at once with the script of one boot, both are
// given the one wipe, which is counted once; who comes from an older boot is not.
func TestWipeIsClaimedOnce(t *testing.T) {
	r := newRack(t)
	r.keeper.change(func(v *inventory.View) {
		v.Facts.Install = inventory.Order{Ordered: 1, Done: 1}
		v.Facts.Reimage = inventory.Reimage{Order: inventory.Order{Ordered: 1}}
	})
	r.ask("GET", scriptPath+"?arch=x86_64", stable)
	r.keeper.clear(t)
	claimed := false
	r.keeper.onRecord = func(inventory.Event) {
		if !claimed { // the other one is first
			claimed = true
			var err error
			if r.keeper.view, err = inventory.Apply(r.keeper.view, inventory.Event{
				Kind: inventory.ScriptServed, MAC: mac1, Plan: inventory.Wipe, Time: time.Now(), Token: "other", Boot: r.keeper.view.Facts.Current().Number,
			}); err != nil {
				t.Error(err)
			}
		}
	}
	if script := r.ask("GET", scriptPath+"?arch=x86_64&retry="+token, stable).Body.String(); !strings.Contains(script, wipeArg) {
		t.Errorf("the second of the same boot is told\n%s", script)
	}
	if o := r.keeper.view.Facts.Reimage; o.Attempts != 1 || !o.Claimed() {
		t.Errorf("the order is %+v", o)
	}
	if script := r.ask("GET", scriptPath+"?arch=x86_64&retry=older", stable).Body.String(); strings.Contains(script, wipeArg) {
		t.Errorf("who comes from another boot is told\n%s", script)
	}
}

// TestAdoption: an unregistered machine waits in its boot loader where that is wanted,
// and goes on once somebody registered it.
func TestAdoption(t *testing.T) {
	r := newRack(t)
	const stranger = "/boot/52:54:00:00:00:99/boot.ipxe?arch=x86_64"
	const code = "WDJB-MJHT"
	from := inventory.MAC("52:54:00:00:00:99").LinkLocal()
	if body := r.ask("GET", stranger, from).Body.String(); strings.Contains(body, code) || !strings.Contains(body, "exit 1") {
		t.Errorf("where nobody is adopted:\n%s", body)
	}
	r.keeper.adopts = code
	body := r.ask("GET", stranger, from).Body.String()
	if !strings.Contains(body, "is not registered. Its code is "+code) || !strings.Contains(body, "chain --replace") || strings.Contains(body, "kernel http:") {
		t.Errorf("a stranger is answered\n%s", body)
	}
	r.keeper.change(func(v *inventory.View) { v.Machine.MACs = append(v.Machine.MACs, "52:54:00:00:00:99") })
	if body := r.ask("GET", stranger, from).Body.String(); !strings.Contains(body, "kernel http:") {
		t.Errorf("once it is registered:\n%s", body)
	}
	r.keeper.change(func(v *inventory.View) { v.Machine.MACs = v.Machine.MACs[:2] })
	r.keeper.viewErr = errors.New("away")
	if body := r.ask("GET", stranger, from).Body.String(); strings.Contains(body, code) {
		t.Errorf("while the inventory is away:\n%s", body)
	}
}
