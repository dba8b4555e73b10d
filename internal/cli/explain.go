package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// maxExplained is how many packets of one capture are explained.
const maxExplained = 200

func (a *app) explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain", Short: "Say which answer a captured DHCPv6 packet would get now, and why", Args: cobra.NoArgs,
		Long: "Says of DHCPv6 packets which machine they are of and by what evidence, which subnet, which answer they\n" +
			"would get now, and why. Nothing is changed. A capture is made where the packets arrive:\n\n" +
			"  tcpdump -i eth0 -w boot.pcap udp port 547\n" +
			"  provisiond explain --pcap boot.pcap --interface eth0",
	}
	file := cmd.Flags().String("pcap", "", "a capture (pcap or pcapng) with packets to the server; - is standard input")
	text := cmd.Flags().String("hex", "", "the UDP payload of one packet in hexadecimal")
	source := cmd.Flags().String("source", "", "with --hex: the IPv6 address it was sent from")
	mac := cmd.Flags().String("link-layer", "", "with --hex: the MAC the frame was sent from")
	iface := cmd.Flags().String("interface", "", "interface of the server it arrives on; only needed if several have a subnet")
	out := (&format{"table"}).bind(cmd)
	cmd.MarkFlagsOneRequired("pcap", "hex")
	cmd.MarkFlagsMutuallyExclusive("pcap", "hex")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		packets := []api.Packet{{Hex: *text, Source: *source, LinkLayer: *mac}}
		if *file != "" {
			var err error
			if packets, err = readCapture(cmd.InOrStdin(), *file); err != nil {
				return err
			}
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		for i := range packets {
			packets[i].Interface = *iface
			x, err := client.Answer[api.Explanation](c.Explain(cmd.Context(), packets[i]))
			if err != nil {
				return err
			}
			if err := out.print(cmd, &x, func(w io.Writer) { printExplanation(w, &packets[i], &x, i > 0) }); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

func printExplanation(w io.Writer, p *api.Packet, x *api.Explanation, next bool) {
	if next {
		_, _ = fmt.Fprintln(w)
	}
	line := func(what, format string, args ...any) { row(w, what, fmt.Sprintf(format, args...)) }
	line("packet", "%s of %d octets from %s", cmp.Or(x.Request, "unreadable"), len(p.Hex)/2, cmp.Or(p.Source, "somewhere"))
	for _, r := range x.Relays {
		line("relay", "link %s, peer %s%s%s%s", r.Link, r.Peer, named(", option 79 ", r.LinkLayer), named(", interface ", r.InterfaceID), named(", remote ", r.RemoteID))
	}
	if x.Request != "" {
		line("subnet", "%s%s", cmp.Or(x.Subnet, "none"), named(", by ", x.SubnetBy))
		line("client", "%s%s", cmp.Or(x.Client, "unknown"), named(" on ", x.Arch))
	}
	for i, e := range x.Evidence {
		verdict := "believed"
		if i > 0 {
			verdict = "passed over"
			if e.MAC == x.Evidence[0].MAC {
				verdict = "agrees"
			}
		}
		line("evidence", "%s says %s: %s", e.Source, e.MAC, verdict)
	}
	if x.Request != "" {
		line("machine", "%s", cmp.Or(x.Machine, "none is registered"))
	}
	if x.Plan != "" {
		line("plan", "%s: %s", x.Plan, x.Reason)
	}
	for i, o := range x.Answer {
		if what := "answer"; i == 0 {
			line(what, "%s", o)
		} else {
			line("option", "%s", o)
		}
	}
	if x.Dropped != "" {
		line("no answer", "%s", x.Dropped)
	}
}

func named(what, s string) string {
	if s == "" {
		return ""
	}
	return what + s
}

// readCapture returns the packets to UDP port 547 in a capture.
func readCapture(stdin io.Reader, name string) ([]api.Packet, error) {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // only read
		in = f
	}
	source, link, err := openCapture(in)
	if err != nil {
		return nil, fmt.Errorf("%s is no capture in pcap or pcapng form: %w", name, err)
	}
	var out []api.Packet
	for {
		data, _, err := source.ReadPacketData()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: after %d DHCPv6 packets: %w", name, len(out), err)
		}
		if p, ok := toServer(gopacket.NewPacket(data, link, gopacket.DecodeOptions{Lazy: true, NoCopy: true})); ok {
			out = append(out, p)
		}
		if len(out) > maxExplained {
			return nil, fmt.Errorf("%s has more than %d DHCPv6 packets; filter it first, such as with tcpdump -r %s -w less.pcap ether host MAC", name, maxExplained, name)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no packet to UDP port 547", name)
	}
	return out, nil
}

func openCapture(r io.Reader) (gopacket.PacketDataSource, gopacket.Decoder, error) {
	b := bufio.NewReader(r)
	magic, err := b.Peek(4)
	if err != nil {
		return nil, nil, err
	}
	if string(magic) == "\n\r\r\n" {
		ng, err := pcapgo.NewNgReader(b, pcapgo.DefaultNgReaderOptions)
		if err != nil {
			return nil, nil, err
		}
		return ng, ng.LinkType(), nil
	}
	old, err := pcapgo.NewReader(b)
	if err != nil {
		return nil, nil, err
	}
	return old, old.LinkType(), nil
}

// toServer takes a frame apart, if it is a DHCPv6 packet to a server.
func toServer(f gopacket.Packet) (p api.Packet, ok bool) {
	udp, isUDP := f.Layer(layers.LayerTypeUDP).(*layers.UDP)
	ip, isIP := f.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	if !isUDP || !isIP || udp.DstPort != 547 {
		return p, false
	}
	p.Hex, p.Source, p.Destination = hex.EncodeToString(udp.Payload), ip.SrcIP.String(), ip.DstIP.String()
	// A loopback has no addresses, so that what a relay on this host forwards comes from zeros.
	if eth, ok := f.Layer(layers.LayerTypeEthernet).(*layers.Ethernet); ok && !bytes.Equal(eth.SrcMAC, make([]byte, 6)) {
		p.LinkLayer = eth.SrcMAC.String()
	}
	return p, true
}
