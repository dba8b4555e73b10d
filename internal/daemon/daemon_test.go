package daemon

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// TestRefusesToStart: whatever is wrong is said before anything is answered,
// with the setting and what to do; and a second try after it was mended works,
// so nothing was left open.
func TestRefusesToStart(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, l *lab) (mend func())
		want  string
	}{
		"TFTP port in use":       {func(t *testing.T, l *lab) func() { return holdUDP(t, l.cfg.TFTPPort) }, "ports.tftp"},
		"HTTP port in use":       {func(t *testing.T, l *lab) func() { return holdTCP(t, l.cfg.HTTPPort) }, "ports.http"},
		"HTTPS port in use":      {func(t *testing.T, l *lab) func() { return holdTCP(t, l.cfg.HTTPSPort) }, "ports.https"},
		"DHCPv6 port in use":     {func(t *testing.T, l *lab) func() { return holdUDP(t, l.cfg.DHCPv6Port) }, "DHCPv6"},
		"event port in use":      {func(t *testing.T, l *lab) func() { return holdTCP(t, l.cfg.EventsPort) }, "ports.events"},
		"kernel log port in use": {func(t *testing.T, l *lab) func() { return holdTCP(t, l.cfg.KernelLogPort) }, "ports.kernelLog"},
		"database locked": {func(t *testing.T, l *lab) func() {
			s := l.open(t)
			return func() { _ = s.Close() }
		}, "another provisiond"},
		"loader missing": {func(t *testing.T, l *lab) func() {
			from := filepath.Join(l.dir, "amd64.efi")
			if err := os.Rename(from, from+".away"); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.Rename(from+".away", from) }
		}, "loaders.amd64/snponly.efi"},
		"socket in use": {func(t *testing.T, l *lab) func() {
			s, err := net.Listen("unix", l.cfg.Socket)
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = s.Close() }
		}, "api.socket"},
		"socket path taken by a file": {func(t *testing.T, l *lab) func() {
			if err := os.WriteFile(l.cfg.Socket, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.Remove(l.cfg.Socket) }
		}, "no socket"},
		"interface missing": {func(_ *testing.T, l *lab) func() {
			l.cfg.Interfaces = []string{"nosuch0"}
			return func() { l.cfg.Interfaces = nil }
		}, "nosuch0"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			mend := tt.spoil(t, l)
			d, err := New(t.Context(), Options{Config: l.cfg, Log: zerolog.Nop()})
			if err == nil {
				_ = d.close()
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not name %q", err, tt.want)
			}
			mend()
			if d, err = New(t.Context(), Options{Config: l.cfg, Log: zerolog.Nop()}); err != nil {
				t.Fatalf("after it was mended: %v", err)
			}
			if err := d.close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func holdUDP(t *testing.T, port uint16) func() {
	t.Helper()
	c, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback, Port: int(port)})
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = c.Close() }
}

func holdTCP(t *testing.T, port uint16) func() {
	t.Helper()
	l, err := net.ListenTCP("tcp6", &net.TCPAddr{IP: net.IPv6loopback, Port: int(port)})
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = l.Close() }
}

// TestSocketIsRootsAlone: nobody else may open the API's socket, and a socket
// that a killed daemon left behind is no obstacle.
func TestSocketIsRootsAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
}

// TestPartThatFailsStopsAll: no half of a daemon goes on alone.
func TestPartThatFailsStopsAll(t *testing.T) {
	l := newLab(t)
	d, err := New(t.Context(), Options{Config: l.cfg, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	d.run("a part", func(context.Context) error { return broken })
	if err := d.Run(t.Context()); !errors.Is(err, broken) || !strings.Contains(err.Error(), "a part") {
		t.Errorf("Run = %v", err)
	}
}
