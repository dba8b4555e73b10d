package api

import "time"

// TokenSpec asks for a token.
type TokenSpec struct {
	Name     string    `json:"name" doc:"Unique name, a DNS label; it is a part of the token, so that whoever finds one knows which to revoke" example:"ci"`
	Role     string    `json:"role" enum:"read,operate,admin" doc:"read: see everything but secrets; operate: change things; admin: be told secrets and give access"`
	Clusters []string  `json:"clusters,omitempty" doc:"All it is good for; left out: the whole rack"`
	Expires  time.Time `json:"expires,omitzero" doc:"Left out: in 90 days"`
	Never    bool      `json:"never,omitempty" doc:"It never expires"`
}

// Token is a token, without what it is.
type Token struct {
	Name     string    `json:"name"`
	Role     string    `json:"role" enum:"read,operate,admin"`
	Clusters []string  `json:"clusters,omitempty" doc:"All it is good for; absent: the whole rack"`
	Created  time.Time `json:"created"`
	By       string    `json:"by,omitempty" doc:"Who made it"`
	Expires  time.Time `json:"expires,omitzero" doc:"Absent: never"`
	Used     time.Time `json:"used,omitzero" doc:"When it was last used, to the hour"`
}

// NewToken is a token that was just made.
type NewToken struct {
	Token
	Text string `json:"token" doc:"What to send as Authorization: Bearer. It is told once"`
}

// CertificateSpec asks for a client certificate.
type CertificateSpec struct {
	Name     string    `json:"name" doc:"Who it is for, a DNS label: its common name" example:"alice"`
	Role     string    `json:"role" enum:"read,operate,admin" doc:"Its organization, provisiond:ROLE"`
	Clusters []string  `json:"clusters,omitempty" doc:"All it is good for, its organizational units; left out: the whole rack"`
	Expires  time.Time `json:"expires,omitzero" doc:"At most a year on; left out: in 30 days"`
}

// NewCertificate is a client certificate that was just issued.
type NewCertificate struct {
	Name    string    `json:"name"`
	Expires time.Time `json:"expires"`
	PEM     string    `json:"pem" doc:"The certificate and its key. The key is told once"`
}

// AuditEntry is one line of the audit trail.
type AuditEntry struct {
	Seq     uint64    `json:"seq" doc:"Number of the line"`
	Time    time.Time `json:"time"`
	Who     string    `json:"who,omitempty" doc:"Absent: nobody who is known"`
	Via     string    `json:"via,omitempty" doc:"How that is known: socket, token, certificate or oidc; provisiond's own acts have none"`
	Role    string    `json:"role,omitempty"`
	From    string    `json:"from,omitempty" doc:"Address and port"`
	Action  string    `json:"action" doc:"Id of the operation, or a word of provisiond's own"`
	Target  string    `json:"target,omitempty" doc:"What it was about, such as machine/cp-1"`
	Outcome string    `json:"outcome" enum:"ok,refused,failed"`
	Status  int       `json:"status,omitempty" doc:"Of the answer"`
	Reason  string    `json:"reason,omitempty" doc:"Why not"`
	Request string    `json:"request,omitempty" doc:"X-Request-Id of the answer"`
	Prev    string    `json:"prev" doc:"SHA-256 of the line before"`
}
