package cli

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/provisiond/provisiond/api"
)

// frame is a UDP packet on the wire, in a VLAN if it is not 0.
func frame(t *testing.T, from net.HardwareAddr, port layers.UDPPort, vlan uint16, payload string) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: from, DstMAC: net.HardwareAddr{0x33, 0x33, 0, 1, 0, 2}, EthernetType: layers.EthernetTypeIPv6}
	ip := &layers.IPv6{Version: 6, NextHeader: layers.IPProtocolUDP, HopLimit: 1, SrcIP: net.ParseIP("fe80::1"), DstIP: net.ParseIP("ff02::1:2")}
	udp := &layers.UDP{SrcPort: 546, DstPort: port}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	all := []gopacket.SerializableLayer{eth}
	if vlan != 0 {
		eth.EthernetType = layers.EthernetTypeDot1Q
		all = append(all, &layers.Dot1Q{VLANIdentifier: vlan, Type: layers.EthernetTypeIPv6})
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append(all, ip, udp, gopacket.Payload(payload))...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestReadCapture: both forms of captures, and in them the packets to a server.
func TestReadCapture(t *testing.T) {
	nic, lo := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, make(net.HardwareAddr, 6)
	frames := [][]byte{
		frame(t, nic, 547, 0, "\x01abcdef"), frame(t, nic, 546, 0, "an answer"), frame(t, nic, 53, 0, "something else"),
		frame(t, nic, 547, 7, "\x03in a VLAN"), {1, 2, 3}, frame(t, lo, 547, 0, "\x0cfrom a relay on this host"),
	}
	info := func(b []byte) gopacket.CaptureInfo {
		return gopacket.CaptureInfo{Timestamp: time.Unix(0, 0), CaptureLength: len(b), Length: len(b)}
	}
	write := map[string]func(*bytes.Buffer) error{
		"pcap": func(out *bytes.Buffer) error {
			w := pcapgo.NewWriter(out)
			err := w.WriteFileHeader(65536, layers.LinkTypeEthernet)
			for _, f := range frames {
				if err == nil {
					err = w.WritePacket(info(f), f)
				}
			}
			return err
		},
		"pcapng": func(out *bytes.Buffer) error {
			w, err := pcapgo.NewNgWriter(out, layers.LinkTypeEthernet)
			for _, f := range frames {
				if err == nil {
					err = w.WritePacket(info(f), f)
				}
			}
			if err == nil {
				err = w.Flush()
			}
			return err
		},
	}
	for form, write := range write {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		got, err := readCapture(&b, "-")
		if err != nil || len(got) != 3 {
			t.Fatalf("%s: %+v, %v", form, got, err)
		}
		if p := got[0]; p.Hex != "01616263646566" || p.Source != "fe80::1" || p.Destination != "ff02::1:2" || p.LinkLayer != "52:54:00:00:00:01" {
			t.Errorf("%s: %+v", form, p)
		}
		if !strings.HasPrefix(got[1].Hex, "03") {
			t.Errorf("%s: %+v", form, got[1])
		}
		if p := got[2]; !strings.HasPrefix(p.Hex, "0c") || p.LinkLayer != "" {
			t.Errorf("%s: on a loopback: %+v", form, p)
		}
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"empty": "", "text": "this is no capture", "short": "\xd4\xc3\xb2\xa1\x02\x00"} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readCapture(nil, file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func FuzzReadCapture(f *testing.F) {
	f.Add([]byte("\xd4\xc3\xb2\xa1\x02\x00\x04\x00"))
	f.Add([]byte("\n\r\r\n\x1c\x00\x00\x00M<+\x1a"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = readCapture(bytes.NewReader(b), "-") })
}

func TestPrintExplanation(t *testing.T) {
	var out strings.Builder
	printExplanation(&out, &api.Packet{Hex: "0102", Source: "fe80::1"}, &api.Explanation{
		Request: "SOLICIT", Subnet: "rack1", SubnetBy: "interface eth0", Client: "pxe", Arch: "amd64", Machine: "cp-1", Plan: "install", Reason: "order 1",
		Relays:   []api.Hop{{Link: "2001:db8::fe", Peer: "fe80::1", RemoteID: "switch-7/port-3"}},
		Evidence: []api.Evidence{{Source: "a", MAC: "m1"}, {Source: "b", MAC: "m1"}, {Source: "c", MAC: "m2"}},
		Answer:   []string{"ADVERTISE", "URL: tftp://x"},
	}, false)
	for _, want := range []string{"SOLICIT of 2 octets", "switch-7/port-3", "a says m1: believed", "b says m1: agrees", "c says m2: passed over", "cp-1", "ADVERTISE", "tftp://x"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}
