package inventory

import (
	"cmp"
	"fmt"
)

// Way is how a machine is started over the network.
type Way string

// The ways. What [Machine.Boot] names is tried first, never the only one.
const (
	// Auto is no way: the firmware decides.
	Auto Way = "auto"
	// ByIPXE has the firmware load iPXE, and iPXE a script, a kernel and an initramfs.
	ByIPXE Way = "ipxe"
	// ByUKI has firmware that boots over HTTP load the machine's own UKI: kernel,
	// initramfs and kernel line in one file.
	ByUKI Way = "uki"
	// BySigned has it load the UKI that the image's vendor signed, as it is. Nothing in
	// it says whose machine it is, so the config goes over the machine's own API.
	BySigned Way = "signed"
)

// Channel is how a machine got its config.
type Channel string

// The channels.
const (
	ChannelURL     Channel = "url"     // talos.config= on its kernel line
	ChannelAPI     Channel = "api"     // ApplyConfiguration, in maintenance mode
	ChannelNoCloud Channel = "nocloud" // user-data of a NoCloud server
	ChannelISO     Channel = "iso"     // a volume beside its boot medium
)

// Switch is what is known of something that is on or off; empty: nothing.
type Switch string

// The positions of a Switch.
const (
	On  Switch = "on"
	Off Switch = "off"
)

// HasSecureBoot reports whether the machine is known to start signed programs only:
// by its operator, or else by what Talos said when it ran there.
func (v *View) HasSecureBoot() bool {
	return v.Machine != nil && cmp.Or(v.Machine.SecureBoot, v.Facts.SecureBoot) == On
}

// HasUKI reports whether a machine's own UKI can be made of the image.
func (i *Image) HasUKI() bool { return i.UKI.SHA256 != "" || i.Stub.SHA256 != "" }

// UKIFiles are the files that a machine's own UKI is made of: the image's UKI; else its
// stub, kernel and initramfs, in this order.
func (i *Image) UKIFiles() []Blob {
	if i.UKI.SHA256 != "" {
		return []Blob{i.UKI}
	}
	return []Blob{i.Stub, i.Kernel, i.Initramfs}
}

// wayTries is how often a way may fail on a machine, one time after the other, before
// the other one is tried.
const wayTries = 2

// PlanWay says by which way a machine is started, and why, when a program of it asks;
// with no program, the one that began its newest boot over the network. An empty way: by none. A way
// that failed twice is not tried again before the other: firmware differs, and nobody
// may be there to see it.
func PlanWay(v View, c Client) (Way, string) {
	if v.Machine == nil {
		return ByIPXE, "" // only its script can say that it waits
	}
	if c == "" {
		c = v.Facts.firmware()
	}
	m, wants := v.Machine, v.Machine.Boot
	switch c {
	case IPXE:
		return ByIPXE, "it is iPXE that asks"
	case FirmwarePXE:
		if wants == ByUKI {
			return ByIPXE, "it should boot a UKI, but its firmware asked over PXE: set it to boot over HTTP"
		}
		return ByIPXE, "its firmware boots over PXE"
	}
	if v.HasSecureBoot() {
		return waySecure(v)
	}
	switch {
	case v.Image == nil || !v.Image.HasUKI():
		if wants == ByUKI {
			return ByIPXE, fmt.Sprintf("it should boot a UKI, but image %s has neither a UKI nor a stub", v.Wanted)
		}
		return ByIPXE, fmt.Sprintf("image %s has neither a UKI nor a stub", v.Wanted)
	case v.Facts.toBeWiped():
		return ByIPXE, "it is to be wiped, and only iPXE can wait for its turn"
	}
	first, other, why := ByUKI, ByIPXE, "its firmware boots over HTTP"
	if c != FirmwareHTTP {
		why = "if its firmware boots over HTTP; it has not asked yet"
	}
	switch wants {
	case ByUKI:
		why = m.Name + " is registered so"
	case ByIPXE:
		first, other, why = ByIPXE, ByUKI, m.Name+" is registered so"
	}
	if !v.Facts.failing(first) || v.Facts.failing(other) && v.Facts.lastWay() == other {
		return first, why
	}
	return other, fmt.Sprintf("the last %d boots by %s got no config", wayTries, first)
}

// waySecure is PlanWay for firmware that boots over HTTP and starts signed programs only.
func waySecure(v View) (Way, string) {
	own, vendors := v.Image != nil && v.Image.HasUKI(), v.Image != nil && v.Image.Signed.SHA256 != ""
	switch {
	case v.Machine.Boot == ByIPXE:
		return ByIPXE, v.Machine.Name + " is registered so; Secure Boot is on, so that its iPXE has to be signed"
	case v.Facts.toBeWiped():
		return "", "Secure Boot is on: it is wiped over its own API, or by a signed iPXE if it is registered with boot: ipxe; a UKI cannot wait for its turn"
	case v.Signs && own && !(v.Facts.failing(ByUKI) && vendors && v.Asks && !(v.Facts.failing(BySigned) && v.Facts.lastWay() == BySigned)):
		return ByUKI, "Secure Boot is on, and its UKI is signed with our key"
	case vendors && v.Asks && v.Signs && own:
		return BySigned, fmt.Sprintf("the last %d boots by %s got no config, perhaps because its firmware does not trust our certificate: it gets the vendor's UKI, and its config over its own API", wayTries, ByUKI)
	case vendors && v.Asks && v.Signs:
		return BySigned, fmt.Sprintf("Secure Boot is on, and image %s has neither a UKI nor a stub to make its own of: it gets the vendor's, and its config over its own API", v.Wanted)
	case vendors && v.Asks:
		return BySigned, "Secure Boot is on and there is no key here to sign its own UKI with: it gets the vendor's, and its config over its own API"
	case vendors:
		return "", "Secure Boot is on: the vendor's UKI would start, but nobody would give it its config (maintenance.enabled is false)"
	case v.Signs:
		return "", fmt.Sprintf("Secure Boot is on, and image %s has neither a UKI nor a stub to make a signed one of", v.Wanted)
	}
	return "", fmt.Sprintf("Secure Boot is on, there is no key here to sign a UKI with, and image %s has no signed one", v.Wanted)
}

// firmware is the program that began its newest boot over the network; empty: it was
// never seen.
func (f *Facts) firmware() Client {
	for _, b := range f.Boots {
		switch b.Client {
		case FirmwarePXE, FirmwareHTTP, IPXE:
			return b.Client
		}
	}
	return ""
}

func (f *Facts) toBeWiped() bool { return f.Reimage.Outstanding() && !f.Reimage.Claimed() }

// failing reports whether the newest boots by a way, one after the other, got no config.
// The boot that goes on is not one of them.
func (f *Facts) failing(w Way) bool {
	n := 0
	for _, b := range f.Boots[min(1, len(f.Boots)):] {
		if !b.tried() || b.Way != w {
			continue
		}
		if !b.Config.IsZero() || !b.API.IsZero() {
			return false
		}
		if n++; n == wayTries {
			return true
		}
	}
	return false
}

// lastWay is that of the newest boot which is over.
func (f *Facts) lastWay() Way {
	for _, b := range f.Boots[min(1, len(f.Boots)):] {
		if b.tried() {
			return b.Way
		}
	}
	return ""
}

// tried reports whether a boot says something of its way: the machine was to install,
// and was given what it takes.
func (b *Boot) tried() bool { return b.Way != "" && b.Plan == Install && b.Error == "" && !b.Waits }
