package racktest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// The packets of TFTP (RFC 1350, RFC 2347).
const (
	tftpRRQ   = 1
	tftpDATA  = 3
	tftpACK   = 4
	tftpERROR = 5
	tftpOACK  = 6
)

const (
	// tftpBlock is EDK2's block size over IPv6: 1280-40-8-4, so that a block
	// never fragments.
	tftpBlock  = 1228
	tftpWindow = 4 // RFC 7440
	// maxLoader bounds what firmware reads into memory.
	maxLoader = 256 << 20
)

// tftpClient reads as EDK2's Mtftp6Dxe does. No library speaks windowsize and
// the aborted size probe.
type tftpClient struct {
	server  *net.UDPAddr
	timeout time.Duration
	tries   int
	net     *Net
	// probe is the port of the size probe. It is held until the file is read: the
	// server answers the abort with an error of its own, which must not reach a
	// transfer that happens to get the same port.
	probe net.PacketConn
}

// transfer is one RRQ and what follows, on a port of its own.
type transfer struct {
	conn    net.PacketConn
	client  *tftpClient
	peer    *net.UDPAddr // server with its transfer port, once known
	last    []byte       // what is sent again when nothing comes
	options map[string]int
	buf     [maxDatagram]byte
}

// size asks for the size of a file and aborts (RFC 2349; "User aborted the
// transfer" is error 8, RFC 2347).
func (c *tftpClient) size(ctx context.Context, name string) (int64, error) {
	t, first, err := c.start(ctx, name, "tsize", "0", "blksize", strconv.Itoa(tftpBlock), "windowsize", strconv.Itoa(tftpWindow))
	if err != nil {
		return 0, err
	}
	c.probe = t.conn
	t.write(append([]byte{0, tftpERROR, 0, 8}, "User aborted the transfer\x00"...))
	size, ok := t.options["tsize"]
	if first != nil || !ok || size <= 0 {
		return 0, fault("PXE-E99", "unexpected network error: the server does not tell the size of %s", name)
	}
	return int64(size), nil
}

// read reads a file.
func (c *tftpClient) read(ctx context.Context, name string) ([]byte, error) {
	t, packet, err := c.start(ctx, name, "blksize", strconv.Itoa(tftpBlock), "windowsize", strconv.Itoa(tftpWindow))
	if err != nil {
		return nil, err
	}
	defer t.conn.Close()
	if c.probe != nil {
		defer c.probe.Close()
	}
	block, window := 512, 1
	if v, ok := t.options["blksize"]; ok {
		block = v
	}
	if v, ok := t.options["windowsize"]; ok {
		window = v
	}
	if block < 8 || block > tftpBlock || window < 1 || window > tftpWindow {
		return nil, fault("PXE-E99", "the server chose blksize %d and windowsize %d of %d and %d", block, window, tftpBlock, tftpWindow)
	}
	var file bytes.Buffer
	var done uint16 // last block received in order; wraps
	unacked := 0
	if packet == nil {
		t.ack(0)
	}
	for file.Len() < maxLoader {
		if packet == nil {
			if packet, err = t.next(ctx); err != nil {
				return nil, err
			}
		}
		op, n, data := binary.BigEndian.Uint16(packet), binary.BigEndian.Uint16(packet[2:]), packet[4:]
		packet = nil
		switch {
		case op == tftpOACK: // our first ACK was lost
			if done == 0 {
				t.ack(0)
			}
		case n == done+1:
			done++
			file.Write(data)
			unacked++
			if len(data) < block {
				t.ack(done)
				return file.Bytes(), nil
			}
			if unacked == window {
				t.ack(done)
				unacked = 0
			}
		case n-done < 1<<15: // a gap: ask for the rest of the window again
			t.ack(done)
			unacked = 0
		}
	}
	return nil, fault("", "%s is larger than %d bytes", name, maxLoader)
}

// start sends an RRQ and takes the answer: options, or the first block when the
// server knows none.
func (c *tftpClient) start(ctx context.Context, name string, options ...string) (*transfer, []byte, error) {
	conn, err := net.ListenUDP("udp6", nil)
	if err != nil {
		return nil, nil, fmt.Errorf("opening a TFTP port: %w", err)
	}
	t := &transfer{conn: c.net.wrap(conn), client: c}
	rrq := []byte{0, tftpRRQ}
	for _, s := range append([]string{name, "octet"}, options...) {
		rrq = append(append(rrq, s...), 0)
	}
	t.write(rrq)
	packet, err := t.next(ctx)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	if binary.BigEndian.Uint16(packet) != tftpOACK {
		return t, packet, nil
	}
	t.options = map[string]int{}
	fields := bytes.Split(packet[2:], []byte{0})
	for i := 0; i+1 < len(fields); i += 2 {
		if v, err := strconv.Atoi(string(fields[i+1])); err == nil {
			t.options[string(bytes.ToLower(fields[i]))] = v
		}
	}
	return t, nil, nil
}

func (t *transfer) ack(block uint16) {
	t.write(binary.BigEndian.AppendUint16([]byte{0, tftpACK}, block))
}

func (t *transfer) write(packet []byte) {
	t.last = packet
	peer := t.peer
	if peer == nil {
		peer = t.client.server
	}
	t.conn.WriteTo(packet, peer) // an unreachable server is a lost packet
}

// next waits for a packet of this transfer and sends the last one again when
// none comes. A server that answers from another address than the one it was
// asked at is not heard.
func (t *transfer) next(ctx context.Context) ([]byte, error) {
	stop := interruptible(ctx, t.conn)
	defer stop()
	for range t.client.tries {
		deadline := time.Now().Add(t.client.timeout)
		t.conn.SetReadDeadline(deadline)
		for {
			n, from, err := t.conn.ReadFrom(t.buf[:])
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, ended(ctx, fmt.Errorf("reading TFTP: %w", err))
			}
			peer, ok := from.(*net.UDPAddr)
			if !ok || n < 4 || !peer.IP.Equal(t.client.server.IP) || t.peer != nil && peer.Port != t.peer.Port {
				continue
			}
			packet := t.buf[:n]
			switch op := binary.BigEndian.Uint16(packet); {
			case op == tftpERROR:
				code := binary.BigEndian.Uint16(packet[2:])
				text, _, _ := bytes.Cut(packet[4:], []byte{0})
				if code == 1 {
					return nil, fault("PXE-E23", "client received TFTP error: file not found: %s", text)
				}
				return nil, fmt.Errorf("TFTP error %d: %s", code, text)
			case op == tftpDATA, op == tftpOACK:
				t.peer = peer
				return packet, nil
			}
		}
		t.write(t.last)
	}
	return nil, fmt.Errorf("PXE-E18: server response timeout: TFTP from %s", t.client.server)
}
