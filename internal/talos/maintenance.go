package talos

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
	"unicode"

	cosiv1alpha1 "github.com/cosi-project/runtime/api/v1alpha1"
	"github.com/cosi-project/runtime/pkg/safe"
	"github.com/cosi-project/runtime/pkg/state"
	"github.com/cosi-project/runtime/pkg/state/protobuf/client"
	"github.com/google/uuid"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/resources/hardware"
	"github.com/siderolabs/talos/pkg/machinery/resources/network"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/provisiond/provisiond/internal/inventory"
)

// ErrNotInMaintenance means that a machine's API answers, and takes no one without a
// certificate of its cluster, or says that it is in another stage.
var ErrNotInMaintenance = errors.New("the machine is not in maintenance mode")

const (
	// maxSaid bounds, in bytes, what a machine in maintenance mode can make us read: it
	// has proven nothing.
	maxSaid = 8 << 20
	// reach bounds connecting: most who are asked are not there.
	reach = 3 * time.Second
	// maxNICs and maxWord bound what is kept of it.
	maxNICs = 64
	maxWord = 64
)

// Maintenance is what a machine in maintenance mode says of itself. Nothing vouches for
// it but whoever knows its fingerprint.
type Maintenance struct {
	// Fingerprint is the SHA-256 of the public key of its certificate, in base64: as
	// its console prints it
	// (internal/app/machined/pkg/controllers/runtime/maintenance_service_inform.go).
	Fingerprint  string
	UUID, Serial string          // of SMBIOS; empty: it says none
	MACs         []inventory.MAC // the permanent ones of its physical NICs, at most 64
	Arch         inventory.Arch
	SecureBoot   inventory.Switch
}

// Maintenance asks who waits at an address in maintenance mode. The error wraps
// ErrNotReached when nobody answers, and ErrNotInMaintenance when a Talos does that has a
// config.
func (c *Client) Maintenance(ctx context.Context, addr netip.Addr) (Maintenance, error) {
	var m Maintenance
	see := func(s tls.ConnectionState) error {
		m.Fingerprint = fingerprint(s)
		return nil
	}
	err := c.unproven(ctx, addr, see, func(conn *grpc.ClientConn) error {
		ctx, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		var now Status
		err := c.machineStatus(ctx, conn, &now)
		if err != nil {
			return err
		}
		if now.Stage != inventory.StageMaintenance {
			return fmt.Errorf("%w: its stage is %s", ErrNotInMaintenance, now.Stage)
		}
		if m.SecureBoot, err = c.secureBoot(ctx, conn); err != nil {
			return err
		}
		return m.read(ctx, conn)
	})
	switch code := status.Code(err); {
	case errors.Is(err, errRefusedUs), code == codes.PermissionDenied, code == codes.Unauthenticated:
		err = fmt.Errorf("%w: %w", ErrNotInMaintenance, err)
	}
	if err != nil {
		return Maintenance{}, fmt.Errorf("asking %s: %w", addr, err)
	}
	return m, nil
}

// read asks for what os:reader may know, which everyone is in maintenance mode.
func (m *Maintenance) read(ctx context.Context, conn *grpc.ClientConn) error {
	st := state.WrapCore(client.NewAdapter(cosiv1alpha1.NewStateClient(conn)))
	info, err := safe.StateGetByID[*hardware.SystemInformation](ctx, st, hardware.SystemInformationID)
	switch {
	case state.IsNotFoundError(err): // no SMBIOS
	case err != nil:
		return fmt.Errorf("reading the system information: %w", err)
	default:
		if id, err := uuid.Parse(info.TypedSpec().UUID); err == nil && id != uuid.Nil {
			m.UUID = id.String()
		}
		m.Serial = word(info.TypedSpec().SerialNumber)
	}
	links, err := safe.StateListAll[*network.LinkStatus](ctx, st)
	if err != nil {
		return fmt.Errorf("listing the NICs: %w", err)
	}
	for link := range links.All() {
		spec := link.TypedSpec()
		addr := spec.PermanentAddr
		if len(addr) == 0 { // virtual NICs have none
			addr = spec.HardwareAddr
		}
		if mac, err := inventory.MACFromBytes(addr); err == nil && spec.Physical() && len(m.MACs) < maxNICs {
			m.MACs = append(m.MACs, mac)
		}
	}
	v, err := machineapi.NewMachineServiceClient(conn).Version(ctx, &emptypb.Empty{})
	if status.Code(err) == codes.Unimplemented { // for everyone in Talos 1.12 (internal/app/maintenance/server.go)
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the version: %w", err)
	}
	for _, said := range v.GetMessages() {
		if arch := inventory.Arch(said.GetVersion().GetArch()); arch == inventory.AMD64 || arch == inventory.ARM64 {
			m.Arch = arch
		}
	}
	return nil
}

// word is a short text of a stranger, or nothing.
func word(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > maxWord || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return ""
	}
	return s
}

// ApplyMaintenance gives a machine in maintenance mode its config, if its certificate has
// the fingerprint that [Client.Maintenance] saw: who was looked at is who gets it. The
// call is made at most once, and is like [Client.ApplyConfig] otherwise. Denied means
// that somebody else answers, or that the machine has a config by now.
func (c *Client) ApplyMaintenance(ctx context.Context, addr netip.Addr, seen string, text []byte) (details string, outcome Outcome, err error) {
	same := func(s tls.ConnectionState) error {
		if subtle.ConstantTimeCompare([]byte(fingerprint(s)), []byte(seen)) != 1 {
			return errOtherKey
		}
		return nil
	}
	err = c.unproven(ctx, addr, same, func(conn *grpc.ClientConn) error {
		details, err = c.applyOn(ctx, conn, &machineapi.ApplyConfigurationRequest{Data: text, Mode: machineapi.ApplyConfigurationRequest_AUTO})
		return err
	})
	outcome = applyOutcome(err)
	if errors.Is(err, errOtherKey) {
		outcome = Denied
	}
	if err != nil {
		err = &saidError{oneLine(redactLine(clip(fmt.Sprintf("applying a config to %s in maintenance mode: %v", addr, shortened(err))))), err}
	}
	return details, outcome, err
}

// saidError is an error with the words of a machine in it, of which anyone may be the author.
type saidError struct {
	text string
	err  error
}

func (e *saidError) Error() string { return e.text }
func (e *saidError) Unwrap() error { return e.err }

var errOtherKey = errors.New("another certificate answers than the one that was seen before")

// fingerprint is that of the certificate of a connection; empty: it has none.
func fingerprint(s tls.ConnectionState) string {
	if len(s.PeerCertificates) == 0 {
		return ""
	}
	sum := sha256.Sum256(s.PeerCertificates[0].RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// unproven is with for a machine whose certificate nobody signed. verify sees it before
// anything is sent.
func (c *Client) unproven(ctx context.Context, addr netip.Addr, verify func(tls.ConnectionState) error, f func(*grpc.ClientConn) error) error {
	target := netip.AddrPortFrom(addr, c.port).String()
	conn, err := c.dial(ctx, &tls.Config{
		InsecureSkipVerify: true, // there is nobody to trust but who knows the fingerprint
		VerifyConnection:   verify,
	}, target, min(c.timeout, reach))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotReached, err)
	}
	return c.over(&limitedConn{conn, maxSaid}, f)
}

// limitedConn is a connection that breaks once too much was read from it. Only one reads at a
// time.
type limitedConn struct {
	net.Conn
	left int
}

func (b *limitedConn) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("the machine says too much")
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
