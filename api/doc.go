// Package api holds the JSON types of the operator's API, version 1. The server
// (internal/admin) and those who call it (client) share them; the OpenAPI
// document is made from them. Addresses, prefixes and MACs are plain strings
// here, so that the server can answer a slip with the name of its field.
package api

// Prefix is the path under which version 1 of the API lives.
const Prefix = "/api/v1"

// MaxLimit is the largest page of a list.
const MaxLimit = 1000

// MaxBody is the size of a request body in bytes from which it is refused.
// Boot images are streamed and have a limit of their own.
const MaxBody = 1 << 20

// DefaultSchematic stands for plain Talos, no schematic, in the path of an image.
const DefaultSchematic = "default"

// Problem is an error answer (RFC 9457), application/problem+json.
type Problem struct {
	Title  string   `json:"title,omitempty"`
	Status int      `json:"status,omitempty"`
	Detail string   `json:"detail,omitempty"`
	Errors []Detail `json:"errors,omitempty"`
}

// Detail is one thing that is wrong with a request.
type Detail struct {
	Message string `json:"message,omitempty"`
	// Location is where: "body.machines[3].address", "query.limit".
	Location string `json:"location,omitempty"`
}

// List is one page of a list.
type List[T any] struct {
	Items []T `json:"items" nullable:"false"`
	// Next is the cursor of the next page, for after=; empty on the last one.
	Next string `json:"next,omitempty" doc:"Cursor of the next page, for the query parameter after; absent on the last page"`
}
