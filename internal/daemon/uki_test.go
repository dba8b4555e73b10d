package daemon

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/images"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
	"github.com/provisiond/provisiond/internal/secureboot"
	"github.com/provisiond/provisiond/internal/uki"
)

// addStubs gives the lab's images a stub each, so that UKIs can be made of them.
func (l *lab) addStubs(t *testing.T) {
	t.Helper()
	l.changeImages(t, func(i *inventory.Image, put func([]byte) inventory.Blob, _ *images.Store) {
		i.Stub = put(racktest.Stub(string(i.Arch)))
	})
}

// addSigned gives them a UKI each that a vendor has signed, with a line that names no
// machine, and nothing to make others of.
func (l *lab) addSigned(t *testing.T, vendor uki.Signer) {
	t.Helper()
	l.changeImages(t, func(i *inventory.Image, put func([]byte) inventory.Blob, blobs *images.Store) {
		with := *i
		with.Stub = put(racktest.Stub(string(i.Arch)))
		template, err := blobs.UKI(&with)
		if err != nil {
			t.Fatal(err)
		}
		image, err := template.Make(racktest.MediumLine, vendor)
		if err != nil {
			t.Fatal(err)
		}
		var files []*os.File
		for _, b := range with.UKIFiles() {
			f, err := blobs.Open(b)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		r, err := image.Open(files...)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		all, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		i.Signed = put(all)
		if err := blobs.CheckUKI(i); err != nil {
			t.Fatal(err)
		}
	})
}

func (l *lab) changeImages(t *testing.T, change func(i *inventory.Image, put func([]byte) inventory.Blob, blobs *images.Store)) {
	t.Helper()
	store, err := openDatabase(t.Context(), l.cfg, boltstore.Options{NoSync: true}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	k, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{Subnets: l.cfg.Subnets})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := images.Open(filepath.Join(l.cfg.Data, "images"))
	if err != nil {
		t.Fatal(err)
	}
	list, err := k.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range list {
		change(&list[i], func(b []byte) inventory.Blob {
			blob, err := blobs.Put(t.Context(), bytes.NewReader(b), "", 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			return blob
		}, blobs)
		if err := k.PutImage(t.Context(), &list[i]); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRackByUKI boots racks whose firmware loads each machine's own UKI, with no boot
// loader in between.
func TestRackByUKI(t *testing.T) {
	for _, arch := range []string{racktest.AMD64, racktest.ARM64} {
		t.Run(arch, func(t *testing.T) {
			l := newLab(t)
			l.addStubs(t)
			r := l.rack(t, racktest.RackOptions{Arch: arch, Firmware: racktest.HTTP})
			proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
			k, _ := l.start(t, l.open(t))
			runRack(t, r)
			verify(t, k, r)
			loaders := map[string]bool{}
			for _, m := range r.Machines {
				v, err := k.Machine(t.Context(), m.Name())
				if err != nil {
					t.Fatal(err)
				}
				// The newest boot may be the one after the installation.
				var way inventory.Way
				for _, b := range v.Facts.Boots {
					if !b.Config.IsZero() {
						way = b.Way
					}
				}
				got := m.Loaded()
				loaders[got.Loader] = true
				if way != inventory.ByUKI || !strings.Contains(got.LoaderURL, "/talos.efi") || !strings.Contains(got.CommandLine, v.Machine.Address.String()) || !strings.Contains(got.CommandLine, string(v.Machine.MACs[0])) {
					t.Errorf("%s was started by %q from %s with %q", m.Name(), way, got.LoaderURL, got.CommandLine)
				}
			}
			if len(loaders) != len(r.Machines) {
				t.Errorf("%d machines loaded %d different UKIs", len(r.Machines), len(loaders))
			}
		})
	}
}

// TestUKIsDoNotStart has firmware that loads UKIs and does not start them: after two
// boots of each machine the third goes by iPXE, and says why.
func TestUKIsDoNotStart(t *testing.T) {
	l := newLab(t)
	l.addStubs(t)
	r := l.rack(t, racktest.RackOptions{Firmware: racktest.HTTP, Starts: func(image []byte) error {
		if bytes.Contains(image[:min(len(image), 4096)], []byte(".linux")) {
			return errors.New("out of resources")
		}
		return nil
	}})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	k, _ := l.start(t, l.open(t))
	runRack(t, r)
	verify(t, k, r)
	for _, m := range r.Machines {
		v, err := k.Machine(t.Context(), m.Name())
		if err != nil {
			t.Fatal(err)
		}
		tries := map[inventory.Way]int{}
		for _, b := range v.Facts.Boots {
			if b.Plan != inventory.Install {
				continue
			}
			tries[b.Way]++
			if b.Way == inventory.ByIPXE && !strings.Contains(b.WayReason, "the last 2 boots by uki got no config") {
				t.Errorf("%s goes by iPXE because %q", m.Name(), b.WayReason)
			}
		}
		if tries[inventory.ByUKI] != 2 || tries[inventory.ByIPXE] != 1 {
			t.Errorf("%s was started %v", m.Name(), tries)
		}
	}
}

// TestRackWithSecureBoot has firmware that starts nothing but what is signed with the
// operator's key.
func TestRackWithSecureBoot(t *testing.T) {
	l := newLab(t)
	l.addStubs(t)
	keys := filepath.Join(l.dir, "secureboot")
	if err := secureboot.Generate(keys, "lab"); err != nil {
		t.Fatal(err)
	}
	l.cfg.SecureBootKey, l.cfg.SecureBootCertificate = secureboot.KeyFiles(keys)
	trusted, err := secureboot.ReadCertificate(l.cfg.SecureBootCertificate)
	if err != nil {
		t.Fatal(err)
	}
	r := l.rack(t, racktest.RackOptions{Firmware: racktest.HTTP, Starts: startsSigned(trusted)})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	k, _ := l.start(t, l.open(t))
	haveSecureBoot(t, k, r)
	runRack(t, r)
	verify(t, k, r)
	for _, m := range r.Machines {
		if line := m.Loaded().CommandLine; !strings.Contains(line, "lockdown=confidentiality") {
			t.Errorf("the kernel of %s is not locked down: %q", m.Name(), line)
		}
	}
}

// startsSigned is firmware with Secure Boot on and this certificate in db.
func startsSigned(trusted *x509.Certificate) func([]byte) error {
	return func(image []byte) error {
		report, err := secureboot.Check(bytes.NewReader(image), int64(len(image)), trusted)
		if err == nil && len(report.Problems) > 0 {
			err = errors.New(report.Problems[0])
		}
		return err
	}
}

// haveSecureBoot registers the rack's machines as such.
func haveSecureBoot(t *testing.T, k *inventory.Keeper, r *racktest.Rack) {
	t.Helper()
	for _, m := range r.Machines {
		v, err := k.Machine(t.Context(), m.Name())
		if err != nil {
			t.Fatal(err)
		}
		with := v.Machine.Clone()
		with.SecureBoot = inventory.On
		if _, err := k.PutMachine(t.Context(), with, with.Rev); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSecureBootWithoutAKey: machines that start nothing but what their vendor signed are
// given that, and their configs over their own API.
func TestSecureBootWithoutAKey(t *testing.T) {
	l := newLab(t)
	keys := filepath.Join(t.TempDir(), "vendor")
	if err := secureboot.Generate(keys, "vendor"); err != nil {
		t.Fatal(err)
	}
	key, certificate := secureboot.KeyFiles(keys)
	vendor, err := secureboot.Load(key, certificate)
	if err != nil {
		t.Fatal(err)
	}
	l.addSigned(t, vendor)
	r := l.rack(t, racktest.RackOptions{Firmware: racktest.HTTP, Starts: startsSigned(vendor.Certificate()), SLAAC: byHand.SLAAC, Patient: true})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	k, _ := l.start(t, l.open(t))
	haveSecureBoot(t, k, r)
	runRack(t, r)
	verify(t, k, r)
	for _, m := range r.Machines {
		v, err := k.Machine(t.Context(), m.Name())
		if err != nil {
			t.Fatal(err)
		}
		var ways []string
		for _, b := range v.Facts.Boots {
			if !b.Config.IsZero() {
				ways = append(ways, string(b.Way)+" "+string(b.ConfigBy))
				if !strings.Contains(b.WayReason, "no key here to sign") {
					t.Errorf("%s was started so because %q", m.Name(), b.WayReason)
				}
			}
		}
		if len(ways) != 1 || ways[0] != "signed api" {
			t.Errorf("%s got its config by %q", m.Name(), ways)
		}
	}
}
