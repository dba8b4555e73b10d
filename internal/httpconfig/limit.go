package httpconfig

import (
	"net"
	"net/netip"
	"sync"
)

const (
	// maxConnections is how many a listener has open, far below what the process may:
	// the operator's API is another part of it.
	maxConnections = 16384
	// maxOfPeer is how many an address has open. Machines have one or two.
	maxOfPeer = 64
)

// limited is a listener that closes at once what is too much: of one address, or of all
// together. Who is turned away tries again; what stays open is at most 10 s in asking.
type limited struct {
	net.Listener
	lab func(netip.Addr) bool

	mu   sync.Mutex
	open map[netip.Addr]int
	all  int
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			return conn, nil
		}
		peer, ok := tcp.RemoteAddr().(*net.TCPAddr)
		if !ok || !l.enter(peer.AddrPort().Addr()) {
			_ = conn.Close() // nobody's loss
			continue
		}
		return &counted{TCPConn: tcp, leave: sync.OnceFunc(func() { l.leave(peer.AddrPort().Addr()) })}, nil
	}
}

func (l *limited) enter(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= maxConnections || l.open[a] >= maxOfPeer && !l.lab(a) {
		return false
	}
	l.all++
	l.open[a]++
	return true
}

func (l *limited) leave(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.open[a]--; l.open[a] == 0 {
		delete(l.open, a)
	}
}

// counted is a connection that is counted while it is open. It stays a *net.TCPConn for
// what sends files.
type counted struct {
	*net.TCPConn
	leave func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	defer c.leave()
	return c.TCPConn.Close()
}
