package racktest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/test/bufconn"
)

// Fabric is the network the simulated machines listen on: an in-memory one,
// addressed by their IPv6 addresses, since those exist on no interface here.
// It also knows who holds which address, which is duplicate address detection.
type Fabric struct {
	mu    sync.Mutex
	hosts map[netip.Addr]*Host
}

// NewFabric returns an empty fabric.
func NewFabric() *Fabric { return &Fabric{hosts: map[netip.Addr]*Host{}} }

// NewHost returns a host without addresses. Close it when it loses power.
func (f *Fabric) NewHost(name string) *Host {
	return &Host{fabric: f, name: name, listeners: map[uint16]*listener{}}
}

// Host is one powered machine on a [Fabric]. It is a [NodeNetwork].
type Host struct {
	fabric    *Fabric
	name      string
	listeners map[uint16]*listener // guarded by fabric.mu
	closed    bool
}

// Claim takes an address. It reports false when another host has it: what
// duplicate address detection would find (RFC 4862 section 5.4).
func (h *Host) Claim(a netip.Addr) bool {
	f := h.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	if other, taken := f.hosts[a]; taken && other != h || h.closed {
		return false
	}
	f.hosts[a] = h
	return true
}

// Drop gives an address up.
func (h *Host) Drop(a netip.Addr) {
	f := h.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hosts[a] == h {
		delete(f.hosts, a)
	}
}

// dropAll gives all addresses up, as a reboot does.
func (h *Host) dropAll() {
	f := h.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.hosts, func(_ netip.Addr, owner *Host) bool { return owner == h })
}

// Close takes the host off the network: its addresses and listeners go, and
// so do all connections to it.
func (h *Host) Close() {
	f := h.fabric
	f.mu.Lock()
	h.closed = true
	for a, owner := range f.hosts {
		if owner == h {
			delete(f.hosts, a)
		}
	}
	var open []*listener
	for _, l := range h.listeners {
		open = append(open, l)
	}
	f.mu.Unlock()
	for _, l := range open {
		l.Close()
	}
}

// Listen opens a TCP port on all addresses of the host.
func (h *Host) Listen(_ context.Context, port uint16) (net.Listener, error) {
	f := h.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	if h.closed {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", syscall.ENETDOWN)}
	}
	if _, taken := h.listeners[port]; taken {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}
	l := &listener{Listener: bufconn.Listen(64 << 10), host: h, port: port, conns: map[net.Conn]struct{}{}}
	h.listeners[port] = l
	return l, nil
}

// DialContext reaches another host of the fabric.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return h.fabric.DialContext(ctx, network, address)
}

// DialContext connects to "[addr]:port" of a host. A host that is off is
// unreachable; a port without a listener refuses.
func (f *Fabric) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	refuse := func(err error) error {
		return &net.OpError{Op: "dial", Net: network, Addr: dialAddr(address), Err: err}
	}
	target, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, refuse(fmt.Errorf("%q is not an address of the fabric: %w", address, err))
	}
	f.mu.Lock()
	host := f.hosts[target.Addr().WithZone("")]
	var l *listener
	if host != nil {
		l = host.listeners[target.Port()]
	}
	f.mu.Unlock()
	switch {
	case host == nil:
		return nil, refuse(os.NewSyscallError("connect", syscall.EHOSTUNREACH))
	case l == nil:
		return nil, refuse(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	conn, err := l.DialContext(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, refuse(ctx.Err())
		}
		return nil, refuse(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	return conn, nil
}

type dialAddr string

func (dialAddr) Network() string  { return "tcp" }
func (a dialAddr) String() string { return string(a) }

// listener is one open port. It knows its connections, since a machine that
// loses power takes them along.
type listener struct {
	*bufconn.Listener
	host *Host
	port uint16

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", net.ErrClosed, err)
	}
	conn := &acceptedConn{Conn: c, listener: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		c.Close()
		return nil, net.ErrClosed
	}
	l.conns[conn] = struct{}{}
	return conn, nil
}

func (l *listener) Close() error {
	l.host.fabric.mu.Lock()
	if l.host.listeners[l.port] == l {
		delete(l.host.listeners, l.port)
	}
	l.host.fabric.mu.Unlock()
	err := l.Listener.Close()
	l.mu.Lock()
	l.closed = true
	conns := slices.Collect(maps.Keys(l.conns))
	l.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	return err
}

func (l *listener) Addr() net.Addr { return dialAddr("[::]:" + strconv.Itoa(int(l.port))) }

type acceptedConn struct {
	net.Conn
	listener *listener
}

func (c *acceptedConn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.conns, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// proxyRequest bounds how long a client of the proxy may take to ask.
const proxyRequest = 10 * time.Second

// ServeProxy lets a program of this host reach the fabric: an HTTP proxy that
// knows the CONNECT method only (RFC 9110 section 9.3.6). It returns nil when
// ctx ends, with ln and all tunnels closed.
func (f *Fabric) ServeProxy(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	var tunnels sync.WaitGroup
	defer tunnels.Wait()
	defer cancel()
	for {
		client, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("accepting a proxy client: %w", err)
		}
		tunnels.Go(func() {
			defer client.Close()
			defer context.AfterFunc(ctx, func() { client.Close() })()
			f.tunnel(ctx, client)
		})
	}
}

func (f *Fabric) tunnel(ctx context.Context, client net.Conn) {
	client.SetReadDeadline(time.Now().Add(proxyRequest))
	in := bufio.NewReader(client)
	req, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	if req.Method != http.MethodConnect {
		io.WriteString(client, "HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\nContent-Length: 0\r\n\r\n")
		return
	}
	client.SetReadDeadline(time.Time{})
	host, err := f.DialContext(ctx, "tcp", req.Host)
	if err != nil {
		fmt.Fprintf(client, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nX-Reason: %s\r\n\r\n", err)
		return
	}
	defer host.Close()
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	var up sync.WaitGroup
	up.Go(func() {
		io.Copy(host, in)
		host.Close()
	})
	io.Copy(client, host)
	client.Close()
	up.Wait()
}
