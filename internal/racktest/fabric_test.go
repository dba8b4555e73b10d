package racktest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
)

func TestFabricProxy(t *testing.T) {
	f := NewFabric()
	host := f.NewHost("h")
	host.Claim(netip.MustParseAddr("fd00::1"))
	ln, err := host.Listen(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.Copy(c, c)
			c.Close()
		}
	}()
	proxy, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.ServeProxy(ctx, proxy) }()

	ask := func(target string) (net.Conn, *bufio.Reader, *http.Response) {
		c, err := net.Dial("tcp", proxy.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
		in := bufio.NewReader(c)
		res, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
		if err != nil {
			t.Fatal(err)
		}
		return c, in, res
	}
	for _, target := range []string{"[fd00::2]:7", "[fd00::1]:8", "name:7"} {
		if _, _, res := ask(target); res.StatusCode != http.StatusBadGateway {
			t.Errorf("CONNECT %s: %s", target, res.Status)
		}
	}
	c, in, res := ask("[fd00::1]:7")
	if res.StatusCode != http.StatusOK {
		t.Fatalf("CONNECT: %s", res.Status)
	}
	io.WriteString(c, "hello")
	got := make([]byte, 5)
	if _, err := io.ReadFull(in, got); err != nil || string(got) != "hello" {
		t.Fatalf("echo gave %q, %v", got, err)
	}
	// The machine loses power: the tunnel breaks.
	host.Close()
	if _, err := in.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the tunnel outlived the machine: %v", err)
	}
	receive(t, "the end of the listener", served)
	cancel()
	if err := receive(t, "the end of ServeProxy", done); err != nil {
		t.Errorf("ServeProxy: %v", err)
	}
}

func TestFabricRefuses(t *testing.T) {
	f := NewFabric()
	a := netip.MustParseAddr("fd00::1")
	one, two := f.NewHost("one"), f.NewHost("two")
	if !one.Claim(a) || two.Claim(a) || !one.Claim(a) {
		t.Error("an address belongs to one host")
	}
	if _, err := f.DialContext(t.Context(), "tcp", "[fd00::1]:1"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("closed port: %v", err)
	}
	if _, err := f.DialContext(t.Context(), "tcp", "[fd00::2]:1"); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("no host: %v", err)
	}
	one.Close()
	if one.Claim(a) || !two.Claim(a) {
		t.Error("a host without power keeps no address")
	}
	if _, err := one.Listen(t.Context(), 1); err == nil {
		t.Error("a host without power listens")
	}
}
