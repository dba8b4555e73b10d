package racktest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// windowedServer answers one RRQ after the other with the given OACK, in
// windows, and loses the datagrams it is told to.
func windowedServer(t *testing.T, file []byte, oack string, window int, lose func(n int) bool) (*net.UDPAddr, func() [][]byte) {
	t.Helper()
	conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var got [][]byte
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		sent := 0
		send := func(peer net.Addr, p []byte) {
			if sent++; lose == nil || !lose(sent) {
				conn.WriteTo(p, peer)
			}
		}
		buf := make([]byte, 2048)
		for {
			n, peer, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			p := bytes.Clone(buf[:n])
			mu.Lock()
			got = append(got, p)
			mu.Unlock()
			switch binary.BigEndian.Uint16(p) {
			case tftpRRQ:
				send(peer, append([]byte{0, tftpOACK}, strings.ReplaceAll(oack, " ", "\x00")+"\x00"...))
			case tftpACK:
				block := int(binary.BigEndian.Uint16(p[2:]))
				for i := block; i < block+window && i*tftpBlock <= len(file); i++ {
					end := min((i+1)*tftpBlock, len(file))
					send(peer, append([]byte{0, tftpDATA, byte((i + 1) >> 8), byte(i + 1)}, file[i*tftpBlock:end]...))
				}
			}
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr), func() [][]byte {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(got)
	}
}

func TestTFTPAsEDK2(t *testing.T) {
	file := bytes.Repeat([]byte{1, 2, 3, 4}, 5000) // 16.3 blocks
	server, got := windowedServer(t, file, "tsize 20000 blksize 1228 windowsize 4", 4, func(n int) bool { return n == 3 || n == 9 })
	c := tftpClient{server: server, timeout: 50 * time.Millisecond, tries: 20, net: &Net{}}
	size, err := c.size(t.Context(), "amd64/x.efi")
	if err != nil || size != 20000 {
		t.Fatalf("size %d, %v", size, err)
	}
	body, err := c.read(t.Context(), "amd64/x.efi")
	if err != nil || !bytes.Equal(body, file) {
		t.Fatalf("read %d bytes, %v", len(body), err)
	}
	packets := got()
	want := []string{
		"\x00\x01amd64/x.efi\x00octet\x00tsize\x000\x00blksize\x001228\x00windowsize\x004\x00",
		"\x00\x05\x00\x08User aborted the transfer\x00",
		"\x00\x01amd64/x.efi\x00octet\x00blksize\x001228\x00windowsize\x004\x00",
		"\x00\x04\x00\x00",
	}
	packets = slices.CompactFunc(packets, bytes.Equal)
	for i, w := range want {
		if string(packets[i]) != w {
			t.Errorf("packet %d is %q, want %q", i, packets[i], w)
		}
	}
	if acks := len(packets) - 3; acks > 12 {
		t.Errorf("%d ACKs for 17 blocks: the window of 4 is not used", acks)
	}
}

func TestTFTPRefusals(t *testing.T) {
	for oack, want := range map[string]string{
		"blksize 1228":               "does not tell the size",
		"tsize 20000 blksize 1432":   "blksize 1432",
		"tsize 20000 windowsize 64 ": "windowsize 64",
	} {
		server, _ := windowedServer(t, nil, oack, 1, nil)
		c := tftpClient{server: server, timeout: 50 * time.Millisecond, tries: 2, net: &Net{}}
		_, err := c.size(t.Context(), "x")
		if err == nil {
			_, err = c.read(t.Context(), "x")
		}
		var broken *Fault
		if !errors.As(err, &broken) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", oack, err)
		}
	}
}
