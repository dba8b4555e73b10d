package admin

import (
	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// The parameters that operations share. They are exported only because huma
// fills in no unexported struct that is embedded.

// MachinePath is the path parameter of one machine.
type MachinePath struct {
	Ref string `path:"machine" doc:"Name of the machine, or one of its MACs in any notation" example:"cp-1"`
}

// MachineFilter picks machines of a list; all that is given must fit.
type MachineFilter struct {
	Cluster string   `query:"cluster" doc:"Only machines of this cluster"`
	Role    string   `query:"role" enum:"controlplane,worker"`
	Phase   string   `query:"phase" enum:"registered,offered,loading,configuring,installing,booting,ready,reimaging,stalled,failed"`
	Label   []string `query:"label,explode" doc:"Only machines with this label, key=value; repeat it for several" example:"[\"rack=a1\"]"`
	Q       string   `query:"q" doc:"Only machines with this text in name, MAC (any notation), address, UUID, serial or a label"`
}

// Page asks for one page of a list.
type Page struct {
	After string `query:"after" doc:"Only what comes after this one: next of the page before"`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most this many"`
}

// ClusterPath is the path parameter of one cluster.
type ClusterPath struct {
	Name string `path:"cluster" doc:"Name of the cluster" example:"rack1"`
}

// ImagePath is the path parameters of one boot image.
type ImagePath struct {
	Version   string `path:"version" pattern:"^v[0-9]+\\.[0-9]+\\.[0-9]+[-.0-9A-Za-z]*$" patternDescription:"a version with its v, such as v1.13.6" example:"v1.13.6"`
	Schematic string `path:"schematic" pattern:"^[0-9A-Za-z][-_.0-9A-Za-z]*$" patternDescription:"a schematic id, or default" maxLength:"128" doc:"Image Factory schematic; default for plain Talos" example:"default"`
	Arch      string `path:"arch" enum:"amd64,arm64"`
}

func (p *ImagePath) image() *inventory.Image {
	schematic := p.Schematic
	if schematic == api.DefaultSchematic {
		schematic = ""
	}
	return &inventory.Image{Version: p.Version, Schematic: schematic, Arch: inventory.Arch(p.Arch)}
}

// EventFilter picks events; all that is given must fit.
type EventFilter struct {
	Machine string `query:"machine" doc:"Only events of this machine"`
	Cluster string `query:"cluster" doc:"Only events that name this cluster"`
	Kind    string `query:"kind" doc:"Only events of this kind" enum:"solicited,offered,loader-served,script-served,kernel-served,initramfs-served,uki-served,config-served,seeded,script-refused,approval-asked,approval-given,approval-denied,maintenance-confirmed,config-declined,config-refused,token-stolen,reported,api-answered,declined,maintenance-seen,maintenance-gone,bootstrap-claimed,bootstrap-sent,bootstrap-accepted,bootstrap-declined,bootstrap-waits,bootstrap-done,config-applied,reimage-ordered,reimage-cancelled,reimage-waits,reimage-leaves,reimage-cleared,wipe-claimed,wipe-accepted,wipe-declined,rollout-started,rollout-claimed,rollout-answered,rollout-again,rollout-done,rollout-failed,rollout-waits,rollout-ended,registered,changed,removed,cluster-created,cluster-changed,cluster-removed,cluster-reset,image-added,image-removed,alarm-seen,secrets-read"`
}

func (f *EventFilter) match(e *inventory.Event) bool {
	return (f.Machine == "" || e.Machine == f.Machine) && (f.Cluster == "" || e.Cluster == f.Cluster) && (f.Kind == "" || string(e.Kind) == f.Kind)
}
