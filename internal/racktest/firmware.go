package racktest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// errNoOffer is an answer with an address and without a boot URL: EDK2 gives
// up at once (PXE-E21) and goes on to the next boot option.
var errNoOffer = errors.New("PXE-E21: remote boot cancelled: no boot URL was offered")

// The private enterprise number of the Intel classes "PXEClient" and
// "HTTPClient".
const enterpriseIntel = 343

// infinite is 0xffffffff seconds (RFC 8415 section 7.7).
const infinite = 0xffffffff * time.Second

// archTypes are the values of option 61 (IANA, "Processor Architecture Types").
var archTypes = map[string]map[Firmware]iana.Arch{
	AMD64: {PXE: iana.EFI_X86_64, HTTP: iana.EFI_X86_64_HTTP},
	ARM64: {PXE: iana.EFI_ARM64, HTTP: iana.EFI_ARM64_HTTP},
}

// firmwareDUID is what EDK2 sends: a DUID-UUID of the raw SMBIOS bytes, whose
// first three fields are little-endian, so that they appear swapped. Without a
// UUID it is a DUID-LLT with the first NIC's MAC, whatever NIC boots.
func (m *Machine) firmwareDUID() dhcpv6.DUID {
	if m.opts.UUID == uuid.Nil {
		return m.llt
	}
	return &dhcpv6.DUIDUUID{UUID: smbiosOrder(m.opts.UUID)}
}

func smbiosOrder(u uuid.UUID) (raw [16]byte) {
	raw = u
	binary.LittleEndian.PutUint32(raw[0:], binary.BigEndian.Uint32(u[0:]))
	binary.LittleEndian.PutUint16(raw[4:], binary.BigEndian.Uint16(u[4:]))
	binary.LittleEndian.PutUint16(raw[6:], binary.BigEndian.Uint16(u[6:]))
	return raw
}

func randomIAID() (id [4]byte) {
	binary.BigEndian.PutUint32(id[:], rand.Uint32())
	return id
}

func vendorClass(kind string, arch iana.Arch, undi string) dhcpv6.Option {
	return &dhcpv6.OptVendorClass{
		EnterpriseNumber: enterpriseIntel,
		Data:             [][]byte{fmt.Appendf(nil, "%s:Arch:%05d:UNDI:%s", kind, arch, undi)},
	}
}

// loader is the program that firmware loaded.
type loader struct {
	url   *url.URL
	bytes []byte
}

// firmware is EDK2's PXEv6 or HTTPv6 boot option up to the start of the loader.
func (b *boot) firmware(ctx context.Context) (*loader, error) {
	p, err := b.opts.Net.open(b.MAC())
	if err != nil {
		return nil, err
	}
	defer p.close()
	defer interruptible(ctx, p.conn)()

	var stack *binding
	stackClient := b.firmwareClient(p)
	stackClient.options = []dhcpv6.Option{dhcpv6.OptRequestedOption(dhcpv6.OptionDNSRecursiveNameServer)}
	if b.opts.OwnStack {
		b.timeline.add(StepSolicit, "firmware's own IPv6 stack asks for an address")
		if stack, err = b.bind(ctx, stackClient); err != nil {
			return nil, err
		}
	}

	arch := archTypes[b.opts.Arch][b.opts.Firmware]
	kind := "PXEClient"
	if b.opts.Firmware == HTTP {
		kind = "HTTPClient"
	}
	var ignored error
	c := b.firmwareClient(p)
	c.options = []dhcpv6.Option{
		dhcpv6.OptRequestedOption(dhcpv6.OptionBootfileURL, dhcpv6.OptionBootfileParam, dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionVendorClass),
		&dhcpv6.OptNetworkInterfaceID{Typ: 1, Major: 3, Minor: 0},
		dhcpv6.OptClientArchType(arch),
		vendorClass(kind, arch, "003000"),
	}
	c.usable = func(m *dhcpv6.Message) bool {
		if b.opts.Firmware == PXE && hasClass(m, "PXEClient") {
			// EDK2 takes it for a boot server's (BINL) offer.
			ignored = fault("PXE-E16", "no valid offer received: option 16 says PXEClient")
		}
		return ignored == nil
	}
	c.before = b.dhcpSteps(kind)
	advertise, _, err := c.acquire(ctx)
	if errors.Is(err, errNoAnswer) && ignored != nil {
		return nil, ignored
	}
	if err != nil {
		return nil, err
	}
	target, err := b.bootURL(advertise)
	if err != nil {
		return nil, err
	}
	bound, err := c.request(ctx, advertise)
	if err != nil {
		return nil, err
	}
	// PXE reads the URL once more, from the Reply; HTTP keeps the Advertise's.
	if b.opts.Firmware == PXE && bound.msg.Options.BootFileURL() == "" {
		return nil, fault("PXE-E99", "unexpected network error: the Reply has no option 59, and the Advertise had")
	}
	if err := b.claim(ctx, c, bound); err != nil {
		return nil, err
	}
	if stack != nil {
		if err := b.release(ctx, stackClient, stack); err != nil {
			return nil, err
		}
	}
	if err := b.step(StepLoader, "%s has %s, loads %s", kind, bound.addr, target); err != nil {
		return nil, err
	}
	l := &loader{url: target}
	if b.opts.Firmware == HTTP {
		l.bytes, err = b.firmwareHTTP(ctx, target)
	} else {
		l.bytes, err = b.firmwareTFTP(ctx, target)
	}
	b.fetched(target.String(), err)
	if err != nil {
		return nil, err
	}
	b.loaded(func(s *Loaded) { *s = Loaded{LoaderURL: target.String(), Loader: hash(l.bytes)} })
	return l, b.release(ctx, c, bound)
}

func (b *boot) firmwareClient(p *port) *dhcpClient {
	return &dhcpClient{
		port: p, time: b.opts.Timing, duid: b.firmwareDUID(), iaid: randomIAID(),
		lifetimes: infinite, collect: true, tries: b.opts.Timing.Tries,
	}
}

// bind is a whole exchange of a client that wants no boot URL.
func (b *boot) bind(ctx context.Context, c *dhcpClient) (*binding, error) {
	advertise, bound, err := c.acquire(ctx)
	if err == nil && bound == nil {
		bound, err = c.request(ctx, advertise)
	}
	if err != nil {
		return nil, err
	}
	return bound, b.claim(ctx, c, bound)
}

// claim is duplicate address detection. An address that another machine has is
// declined (RFC 8415 section 18.2.8), and the boot option fails.
func (b *boot) claim(ctx context.Context, c *dhcpClient, bound *binding) error {
	if b.host.Claim(bound.addr) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := c.give(ctx, dhcpv6.MessageTypeDecline, bound); err != nil {
		return err
	}
	return fault("PXE-E07", "network device error: %s is already in use on the link", bound.addr)
}

func (b *boot) release(ctx context.Context, c *dhcpClient, bound *binding) error {
	b.host.Drop(bound.addr)
	return c.give(ctx, dhcpv6.MessageTypeRelease, bound)
}

func (b *boot) dhcpSteps(who string) func(dhcpv6.MessageType) error {
	return func(t dhcpv6.MessageType) error {
		switch t {
		case dhcpv6.MessageTypeSolicit:
			return b.step(StepSolicit, "%s sends Solicit", who)
		case dhcpv6.MessageTypeAdvertise:
			return b.step(StepAdvertise, "%s takes an Advertise", who)
		case dhcpv6.MessageTypeRequest:
			return b.step(StepRequest, "%s sends Request", who)
		}
		return b.step(StepReply, "%s takes the Reply", who)
	}
}

// bootURL reads an offer as this firmware does.
func (b *boot) bootURL(m *dhcpv6.Message) (*url.URL, error) {
	raw := strings.TrimRight(m.Options.BootFileURL(), "\x00")
	if raw == "" {
		return nil, errNoOffer
	}
	if b.opts.Firmware == HTTP && !httpClass(m) {
		return nil, fault("", "remote boot cancelled: the offer has no option 16 with HTTPClient")
	}
	if b.opts.Firmware == PXE && m.GetOneOption(dhcpv6.OptionBootfileParam) != nil {
		// EDK2 reads option 60 as the file's size in blocks of 512 bytes.
		return nil, fault("PXE-E53", "no boot filename received: option 60 is in the way")
	}
	if last := m.Options.Options[len(m.Options.Options)-1]; last.Code() == dhcpv6.OptionBootfileURL {
		// EDK2 finds its end with strlen; any option after it begins with 00.
		return nil, fault("", "the boot URL is the last option: EDK2 reads past its end")
	}
	target, err := url.Parse(raw)
	if err != nil {
		return nil, fault("PXE-E53", "no boot filename received: %v", err)
	}
	want := map[Firmware]string{PXE: "tftp", HTTP: "http"}[b.opts.Firmware]
	if target.Scheme != want || net.ParseIP(target.Hostname()) == nil {
		return nil, fault("PXE-E53", "no boot filename received: %s firmware takes %s://[address]/..., not %s", b.opts.Firmware, want, raw)
	}
	return target, nil
}

func hasClass(m *dhcpv6.Message, class string) bool {
	for _, vc := range m.Options.VendorClasses() {
		for _, d := range vc.Data {
			if strings.HasPrefix(string(d), class) {
				return true
			}
		}
	}
	return false
}

// httpClass looks where EDK2 looks: at octets 6 to 15 of option 16, whatever the
// enterprise number says.
func httpClass(m *dhcpv6.Message) bool {
	for _, vc := range m.Options.VendorClasses() {
		if raw := vc.ToBytes(); len(raw) >= 16 && string(raw[6:16]) == "HTTPClient" {
			return true
		}
	}
	return false
}

// firmwareHTTP is EDK2's HTTP boot: HEAD for the size, then GET on the same
// connection, no redirects, no proxies, no compression.
func (b *boot) firmwareHTTP(ctx context.Context, target *url.URL) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, b.opts.Timing.HTTP)
	defer cancel()
	transport := &http.Transport{DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	ask := func(method string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, method, target.String(), nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("User-Agent", "UefiHttpBoot/1.0")
		req.Header.Set("Accept", "*/*")
		res, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		if res.StatusCode == http.StatusOK {
			return res, nil
		}
		res.Body.Close()
		if res.StatusCode >= 500 {
			return nil, fmt.Errorf("%s %s: %s", method, target, res.Status)
		}
		return nil, fault("", "%s %s: %s", method, target, res.Status)
	}
	head, err := ask(http.MethodHead)
	if err != nil {
		return nil, err
	}
	head.Body.Close()
	if head.ContentLength <= 0 {
		return nil, fault("", "could not retrieve NBP file size: HEAD %s has no Content-Length", target)
	}
	if !strings.EqualFold(path.Ext(target.Path), ".efi") && head.Header.Get("Content-Type") != "application/efi" {
		return nil, fault("", "could not retrieve NBP file size: %s is neither named .efi nor application/efi", target)
	}
	res, err := ask(http.MethodGet)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	image, err := io.ReadAll(io.LimitReader(res.Body, maxLoader))
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", target, err)
	}
	if int64(len(image)) != head.ContentLength {
		return nil, fault("", "GET %s gave %d bytes, HEAD said %d", target, len(image), head.ContentLength)
	}
	return image, nil
}

// firmwareTFTP is EDK2's TFTP boot: one request for the size, which it aborts,
// and one that reads.
func (b *boot) firmwareTFTP(ctx context.Context, target *url.URL) ([]byte, error) {
	server := &net.UDPAddr{IP: net.ParseIP(target.Hostname()), Port: 69}
	if p := target.Port(); p != "" {
		addr, err := net.ResolveUDPAddr("udp6", target.Host)
		if err != nil {
			return nil, fault("PXE-E53", "no boot filename received: %v", err)
		}
		server = addr
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(target.Path, "/"), ";")
	t := tftpClient{server: server, timeout: b.opts.Timing.TFTP, tries: b.opts.Timing.TFTPTries, net: b.opts.Net}
	size, err := t.size(ctx, name)
	if err != nil {
		return nil, err
	}
	image, err := t.read(ctx, name)
	if err != nil {
		return nil, err
	}
	if int64(len(image)) != size {
		return nil, fault("", "TFTP of %s gave %d bytes, tsize said %d", name, len(image), size)
	}
	return image, nil
}
