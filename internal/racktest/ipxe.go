package racktest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv6"
)

// maxImage bounds what iPXE reads into memory.
const maxImage = 1 << 30

// ipxe is one run of the iPXE that firmware started.
type ipxe struct {
	*boot
	addr     netip.Addr
	offered  string            // URL of the Reply
	settings map[string]string // set by scripts
	images   map[string]*image
	kernel   *image // selected
	cwd      *url.URL
	commands int
	depth    int
}

// image is a downloaded file, by the name iPXE gives it.
type image struct {
	name string
	url  string
	hash string
	args string
}

// ipxe runs iPXE from its start to a kernel.
func (b *boot) ipxe(ctx context.Context, l *loader) (*commandLine, error) {
	x := &ipxe{boot: b, settings: map[string]string{}, images: map[string]*image{}, cwd: l.url}
	err := x.start(ctx, l)
	// iPXE does not release its lease, but nobody answers for the address.
	b.host.Drop(x.addr)
	var booted *bootedKernel
	if errors.As(err, &booted) {
		return booted.line, nil
	}
	if err == nil {
		err = errExit
	}
	return nil, err
}

func (x *ipxe) start(ctx context.Context, l *loader) error {
	if x.opts.IPXE == IPXE20 && l.url.Scheme == "http" {
		auto := l.url.ResolveReference(&url.URL{Path: "autoexec.ipxe"})
		script, err := x.get(ctx, auto.String())
		var refused *Fault
		switch {
		case err == nil:
			x.timeline.add(StepScript, "iPXE runs %s", auto)
			p, err := parse(auto, script)
			if err != nil {
				return err
			}
			return x.script(ctx, p)
		case !errors.As(err, &refused): // 404 is fine
			return err
		}
	}
	// autoboot tries DHCPv4 beside DHCPv6 and waits for both.
	if err := x.configure(ctx); err != nil {
		return err
	}
	if err := sleep(ctx, x.opts.Timing.DHCPv4); err != nil {
		return err
	}
	if x.offered == "" {
		return fmt.Errorf("%w: iPXE was given an address and no boot URL", errExit)
	}
	return x.chain(ctx, x.offered)
}

// configure is iPXE's DHCPv6: user class "iPXE", a DUID-UUID in text order (all
// zero without a UUID) and an IAID that stays.
func (x *ipxe) configure(ctx context.Context) error {
	p, err := x.opts.Net.open(x.MAC())
	if err != nil {
		return err
	}
	defer p.close()
	defer interruptible(ctx, p.conn)()
	if err := x.step(StepIPXESolicit, "iPXE %s sends Solicit", x.opts.IPXE); err != nil {
		return err
	}
	c := &dhcpClient{port: p, time: x.opts.Timing, tries: x.opts.Timing.Tries, duid: &dhcpv6.DUIDUUID{UUID: x.opts.UUID}}
	binary.BigEndian.PutUint32(c.iaid[:], crc32.ChecksumIEEE(x.MAC()))
	arch := archTypes[x.opts.Arch][PXE]
	c.options = []dhcpv6.Option{
		dhcpv6.OptRequestedOption(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList, dhcpv6.OptionBootfileURL, dhcpv6.OptionBootfileParam),
		&dhcpv6.OptUserClass{UserClasses: [][]byte{[]byte("iPXE")}},
		vendorClass("PXEClient", arch, "003010"),
		dhcpv6.OptClientArchType(arch),
		&dhcpv6.OptNetworkInterfaceID{Typ: 1, Major: 3, Minor: 16},
	}
	bound, err := x.bind(ctx, c)
	if err != nil {
		return fmt.Errorf("iPXE: no configuration methods succeeded: %w", err)
	}
	x.addr, x.offered = bound.addr, strings.TrimRight(bound.msg.Options.BootFileURL(), "\x00")
	x.timeline.add(StepIPXESolicit, "iPXE has %s and boot URL %q", x.addr, x.offered)
	return nil
}

// get downloads a file as iPXE does. A redirect is followed; a 4xx is a Fault.
func (x *ipxe) get(ctx context.Context, raw string) (body []byte, err error) {
	defer func() { x.fetched(raw, err) }()
	ctx, cancel := context.WithTimeout(ctx, x.opts.Timing.HTTP)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, raw, nil)
	if err != nil {
		return nil, fault("", "iPXE: %s: %v", raw, err)
	}
	if req.URL.Scheme != "http" {
		return nil, fault("", "iPXE: %s: protocol not supported (https needs a build of one's own)", raw)
	}
	req.Header.Set("User-Agent", "iPXE/"+string(x.opts.IPXE))
	transport := &http.Transport{DisableCompression: true, DisableKeepAlives: true}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, ended(ctx, err)
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode >= 500:
		return nil, fmt.Errorf("iPXE: GET %s: %s", raw, res.Status)
	case res.StatusCode != http.StatusOK:
		return nil, fault("", "iPXE: GET %s: %s", raw, res.Status)
	}
	body, err = io.ReadAll(io.LimitReader(res.Body, maxImage))
	if err != nil {
		return nil, fmt.Errorf("iPXE: GET %s: %w", raw, err)
	}
	return body, nil
}

// resolve makes a URI of a script absolute.
func (x *ipxe) resolve(raw string) (string, error) {
	ref, err := url.Parse(raw)
	if err != nil {
		return "", fault("", "iPXE: %q is not a URI: %v", raw, err)
	}
	return x.cwd.ResolveReference(ref).String(), nil
}

// chain downloads an image and runs it; it must be a script.
func (x *ipxe) chain(ctx context.Context, raw string) error {
	p, err := x.download(ctx, raw)
	if err != nil {
		return err
	}
	return x.script(ctx, p)
}

func (x *ipxe) download(ctx context.Context, raw string) (*program, error) {
	target, err := x.resolve(raw)
	if err != nil {
		return nil, err
	}
	if err := x.step(StepScript, "iPXE chains %s", target); err != nil {
		return nil, err
	}
	text, err := x.get(ctx, target)
	if err != nil {
		return nil, err
	}
	at, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	return parse(at, text)
}

// fetch downloads an image for later.
func (x *ipxe) fetch(ctx context.Context, s Step, raw, name, args string) (*image, error) {
	target, err := x.resolve(raw)
	if err != nil {
		return nil, err
	}
	if name == "" {
		at, _ := url.Parse(target)
		name = path.Base(at.Path)
	}
	if err := x.step(s, "iPXE downloads %s", target); err != nil {
		return nil, err
	}
	body, err := x.get(ctx, target)
	if err != nil {
		return nil, err
	}
	if len(body) == 0 {
		return nil, fault("", "iPXE: %s is empty", target)
	}
	i := &image{name: name, url: target, hash: hash(body), args: args}
	x.images[name] = i
	x.timeline.add(s, "%s: %d bytes, SHA-256 %s", name, len(body), i.hash[:16])
	return i, nil
}

// bootedKernel ends all scripts: the machine is the kernel's now.
type bootedKernel struct{ line *commandLine }

func (*bootedKernel) Error() string { return "the kernel was started" }

// bootKernel starts the selected kernel through its EFI stub.
func (x *ipxe) bootKernel() error {
	if x.kernel == nil {
		return fault("", "iPXE: boot: no kernel was loaded")
	}
	line := parseCommandLine(x.kernel.args)
	var initrd *image
	for name, i := range x.images {
		if i == x.kernel {
			continue
		}
		// The 2019 build finds the initramfs by initrd= alone; 2.0 offers it
		// by LoadFile2 whatever the line says.
		if x.opts.IPXE == IPXE20 || line.first("initrd") == name {
			initrd = i
		}
	}
	if initrd == nil {
		return fault("", "kernel panic: no initramfs: iPXE %s was given no initrd= on the kernel line for %d images", x.opts.IPXE, len(x.images)-1)
	}
	x.loaded(func(s *Loaded) {
		s.KernelURL, s.Kernel = x.kernel.url, x.kernel.hash
		s.InitramfsURL, s.Initramfs = initrd.url, initrd.hash
		s.CommandLine = x.kernel.args
	})
	x.timeline.add(StepInitramfs, "kernel starts: %s", x.kernel.args)
	return &bootedKernel{line}
}

// builtin is a setting that iPXE knows by itself.
func (x *ipxe) builtin(name string) (string, bool) {
	nic, field, scoped := strings.Cut(name, "/")
	if scoped && nic != "net0" && nic != "netX" && nic != "smbios" {
		return "", false
	}
	if !scoped {
		field = name
	}
	switch field {
	case "mac":
		return x.MAC().String(), true
	case "uuid":
		return x.opts.UUID.String(), true
	case "serial":
		return x.Serial(), x.Serial() != ""
	case "buildarch":
		return map[string]string{AMD64: "x86_64", ARM64: "arm64"}[x.opts.Arch], true
	case "platform":
		return "efi", true
	case "version":
		return string(x.opts.IPXE), true
	case "ip6":
		return x.addr.String(), x.addr.IsValid()
	case "filename", "bootfile-url":
		return x.offered, x.offered != ""
	case "ip": // IPv4: there is none
	}
	return "", false
}
