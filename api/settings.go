package api

import "time"

// Settings is what a provisiond runs with: its config file with what that leaves out
// filled in, and what came of it on its host. No secret is in it.
type Settings struct {
	Host       HostSettings       `json:"host"`
	Listening  []Listening        `json:"listening" nullable:"false" doc:"Where it really listens"`
	Advertised []Advertised       `json:"advertised" nullable:"false" doc:"What booting machines are told"`
	API        APISettings        `json:"api"`
	Rack       RackSettings       `json:"rack"`
	Loaders    map[string]string  `json:"loaders" doc:"File of each loader, ARCH/FILE.efi"`
	Stall      map[string]string  `json:"stall" doc:"How long each phase may last; 0s: as long as it likes" example:"{\"installing\":\"30m0s\"}"`
	Subnets    []SubnetSettings   `json:"subnets" nullable:"false"`
	Log        LogSettings        `json:"log"`
	Tracing    string             `json:"tracing,omitempty" doc:"Collector that traces of boots go to; absent: none"`
	Expiries   []CertificateUntil `json:"certificates" nullable:"false" doc:"Certificates that nobody renews but people"`
}

// HostSettings are those of its host.
type HostSettings struct {
	Version string `json:"version"`
	User    string `json:"user" doc:"Name, or number, of the user that it runs as now"`
	Data    string `json:"data" doc:"Folder of the database, the images and the audit trail"`
	Free    uint64 `json:"free" doc:"Bytes free there; 0 where that cannot be seen"`
	KeyID   string `json:"keyID,omitempty" doc:"Public half of the key that the database is sealed to"`
	KeyFile string `json:"keyFile" doc:"Where the key is looked for, unless it is given in another way"`
}

// Listening is a server's address.
type Listening struct {
	Server  string `json:"server" enum:"dhcpv6,tftp,http,https,events,kernelLog,api,socket"`
	Address string `json:"address" doc:"Address and port, or the path of a socket"`
}

// Advertised is something that machines are told.
type Advertised struct {
	What  string `json:"what" example:"loader for amd64 by HTTP"`
	Value string `json:"value" example:"http://[2001:db8::2]:8080/loader/amd64/ipxe.efi"`
}

// APISettings are those of the operator's API.
type APISettings struct {
	Names       []string      `json:"names,omitempty" doc:"Those it is called by, beside addresses"`
	Certificate string        `json:"certificate,omitempty" doc:"File of what it shows; absent: one of its own CA"`
	ClientCA    string        `json:"clientCA,omitempty" doc:"File of the CA of client certificates; absent: its own"`
	OIDC        *OIDCSettings `json:"oidc,omitempty" doc:"Issuer that vouches for people; absent: none"`
}

// OIDCSettings are an OpenID Connect issuer's.
type OIDCSettings struct {
	Issuer    string   `json:"issuer"`
	ClientID  string   `json:"clientID"`
	Scopes    []string `json:"scopes,omitempty"`
	RoleClaim string   `json:"roleClaim"`
	Groups    []string `json:"groups" nullable:"false" doc:"Those that have a role, as GROUP: ROLE, or GROUP: ROLE in CLUSTERS"`
	Secret    bool     `json:"secret" doc:"It knows us by a secret"`
}

// RackSettings are those of the network that the machines are on.
type RackSettings struct {
	Address        string          `json:"address" doc:"Where machines reach it"`
	Interfaces     []string        `json:"interfaces,omitempty" doc:"Those that machines are on; absent: all are behind relays"`
	TalosProxy     string          `json:"talosProxy,omitempty" doc:"HTTP CONNECT proxy to the machines' Talos API"`
	SecureBoot     string          `json:"secureBoot,omitempty" doc:"File of the certificate of the key that machines' UKIs are signed with; absent: they are not signed"`
	Maintenance    bool            `json:"maintenance" doc:"Machines that wait in Talos' maintenance mode are looked for"`
	KernelLog      string          `json:"kernelLog,omitempty" doc:"Where machines send their kernel log instead"`
	Advertisements []Advertisement `json:"routerAdvertisements,omitempty" doc:"Absent: it sends none"`
}

// Advertisement is what a router advertisement on an interface says.
type Advertisement struct {
	Interface string `json:"interface"`
	SLAAC     bool   `json:"slaac"`
	Lifetime  string `json:"routerLifetime"`
	MTU       uint32 `json:"mtu,omitempty"`
}

// SubnetSettings are those of a subnet, beside what list-subnets answers.
type SubnetSettings struct {
	Name       string   `json:"name"`
	Prefix     string   `json:"prefix"`
	DNS        []string `json:"dns,omitempty"`
	Domains    []string `json:"domains,omitempty"`
	NTP        []string `json:"ntp,omitempty"`
	Options    []uint16 `json:"options,omitempty" doc:"Codes of DHCPv6 options of its own"`
	Preferred  string   `json:"preferred" example:"12h0m0s"`
	Valid      string   `json:"valid" example:"24h0m0s"`
	Renew      string   `json:"renew"`
	Rebind     string   `json:"rebind"`
	Preference uint8    `json:"preference"`
}

// LogSettings are those of the log.
type LogSettings struct {
	Level string `json:"level"`
	JSON  bool   `json:"json"`
}

// CertificateUntil is when a certificate expires.
type CertificateUntil struct {
	Name    string    `json:"name" enum:"ca,api"`
	Expires time.Time `json:"expires"`
}
