package api

import "time"

// SeedOrder asks for a seed: the config of a machine in another way than by its netboot.
type SeedOrder struct {
	For string `json:"for,omitempty" doc:"IPv6 address that may fetch it, and then nobody else, such as the BMC that reads it as virtual media; left out: the machine itself" example:"2001:db8:9::b"`
}

// Seed is where a machine's config is fetched from, by NoCloud or as a volume. Its URLs
// are secrets.
type Seed struct {
	Machine       string    `json:"machine"`
	Boot          uint64    `json:"boot" doc:"Number of the boot that it began"`
	For           string    `json:"for,omitempty" doc:"Address that alone may fetch it; absent: the machine"`
	NoCloud       string    `json:"nocloud,omitempty" doc:"URL below which NoCloud's files are"`
	Serial        string    `json:"serial,omitempty" doc:"SMBIOS serial number that has Talos' nocloud image read them"`
	NoCloudReason string    `json:"nocloudReason,omitempty" doc:"Why there is no such URL"`
	MetalISO      string    `json:"metalISO" doc:"URL of a volume for Talos with talos.config=metal-iso on its kernel line"`
	NoCloudISO    string    `json:"nocloudISO" doc:"URL of a volume for Talos' nocloud image"`
	Until         time.Time `json:"until" doc:"When the URLs are good for nothing, unless they are before: once the machine's API has answered, or two more boots began"`
}

// The formats of an ISO.
const (
	ISOMetal   = "metal-iso"
	ISONoCloud = "nocloud"
)

// ISOOrder asks for a volume with the config of a machine.
type ISOOrder struct {
	Format string `json:"format,omitempty" enum:"metal-iso,nocloud" doc:"metal-iso: for Talos with talos.config=metal-iso on its kernel line; nocloud: for its nocloud image. Left out: metal-iso"`
}
