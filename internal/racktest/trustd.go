package racktest

import (
	"bytes"
	"context"
	"crypto/subtle"
	"crypto/tls"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/siderolabs/crypto/x509"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	securityapi "github.com/siderolabs/talos/pkg/machinery/api/security"
	"github.com/siderolabs/talos/pkg/machinery/constants"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// certificateLife is that of Talos' own server certificates.
const certificateLife = 24 * time.Hour

// acceptedCAs are the OS CAs whose certificates the node believes, PEM.
func (n *Node) acceptedCAs() [][]byte {
	security := n.cfg.Machine().Security()
	var cas [][]byte
	for _, ca := range security.AcceptedCAs() {
		cas = append(cas, ca.Crt)
	}
	if ca := security.IssuingCA(); ca != nil && len(ca.Crt) > 0 {
		cas = append(cas, ca.Crt)
	}
	return cas
}

func (n *Node) caPool() (*stdx509.CertPool, error) {
	pool := stdx509.NewCertPool()
	for _, ca := range n.acceptedCAs() {
		if !pool.AppendCertsFromPEM(ca) {
			return nil, errors.New("machine.ca: not a certificate")
		}
	}
	return pool, nil
}

// names are the subject alternative names of the node's certificates.
func (n *Node) names(sans []string) []x509.Option {
	var ips []net.IP
	var dns []string
	for _, a := range n.opts.Addresses {
		ips = append(ips, a.AsSlice())
	}
	if n.opts.Hostname != "" {
		dns = append(dns, n.opts.Hostname)
	}
	for _, san := range sans {
		if ip := net.ParseIP(san); ip != nil {
			ips = append(ips, ip)
		} else {
			dns = append(dns, san)
		}
	}
	return []x509.Option{x509.IPAddresses(ips), x509.DNSNames(dns), x509.CommonName(n.opts.Hostname)}
}

// issue makes a server certificate with a CA of which the config has the key.
func (n *Node) issue(ca *x509.PEMEncodedCertificateAndKey, sans []string) (tls.Certificate, error) {
	if ca == nil || len(ca.Key) == 0 {
		return tls.Certificate{}, errors.New("the config of a control plane holds no key of its CA")
	}
	authority, err := x509.NewCertificateAuthorityFromCertificateAndKey(ca)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("failed to parse CA certificate: %w", err)
	}
	pair, err := x509.NewKeyPair(authority, append(n.names(sans),
		x509.NotAfter(time.Now().Add(certificateLife)),
		x509.KeyUsage(stdx509.KeyUsageDigitalSignature),
		x509.ExtKeyUsage([]stdx509.ExtKeyUsage{stdx509.ExtKeyUsageServerAuth}),
	)...)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("failed to generate a server certificate: %w", err)
	}
	return *pair.Certificate, nil
}

// apiCertificate makes apid's TLS: a control plane signs for itself, a worker
// asks trustd for as long as it takes.
func (n *Node) apiCertificate(ctx context.Context) (*tls.Config, error) {
	pool, err := n.caPool()
	if err != nil {
		return nil, err
	}
	var cert tls.Certificate
	if n.control {
		cert, err = n.issue(n.cfg.Machine().Security().IssuingCA(), n.cfg.Machine().Security().CertSANs())
	} else {
		cert, err = n.trustdCertificate(ctx, pool)
	}
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	}, nil
}

// trustdCertificate asks the cluster endpoint's host, and any control plane that
// is known to run, until one signs (pkg/grpc/gen RemoteGenerator).
func (n *Node) trustdCertificate(ctx context.Context, pool *stdx509.CertPool) (tls.Certificate, error) {
	cas := n.acceptedCAs()
	block, _ := pem.Decode(cas[len(cas)-1])
	if block == nil {
		return tls.Certificate{}, errors.New("machine.ca: not PEM")
	}
	template, err := stdx509.ParseCertificate(block.Bytes)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("failed to parse CA certificate: %w", err)
	}
	csr, identity, err := x509.NewCSRAndIdentityFromCA(template, n.names(n.cfg.Machine().Security().CertSANs())...)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("failed to generate API server CSR: %w", err)
	}
	retry := backoff{next: n.opts.Timing.Backoff, max: n.opts.Timing.BackoffMax}
	for {
		hosts := []string{n.cluster.Endpoint.Hostname()}
		for _, m := range n.opts.Peers.Members(ctx, n.cluster) {
			hosts = append(hosts, m.Address.String())
		}
		for _, host := range hosts {
			signed, err := n.askTrustd(ctx, host, pool, csr.X509CertificateRequestPEM)
			if err != nil {
				continue
			}
			return tls.X509KeyPair(signed, identity.Key)
		}
		if err := retry.wait(ctx); err != nil {
			return tls.Certificate{}, err
		}
	}
}

// askTrustd makes one SecurityService/Certificate call.
func (n *Node) askTrustd(ctx context.Context, host string, pool *stdx509.CertPool, csr []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(host, fmt.Sprint(constants.TrustdPort)),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: host, MinVersion: tls.VersionTLS13})),
		grpc.WithPerRPCCredentials(tokenCredentials(n.cfg.Machine().Security().Token())),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return n.opts.Network.DialContext(ctx, "tcp", address)
		}),
		grpc.WithNoProxy(),
	)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	res, err := securityapi.NewSecurityServiceClient(conn).Certificate(ctx, &securityapi.CertificateRequest{Csr: csr})
	return res.GetCrt(), err
}

// tokenCredentials is machine.token, sent as metadata "token".
type tokenCredentials string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t tokenCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"token": string(t)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (tokenCredentials) RequireTransportSecurity() bool { return true }

// runTrustd is trustd of a control plane: it signs certificates for workers
// that know the machine token.
func (n *Node) runTrustd(ctx context.Context) error {
	if err := n.set(ctx, "trustd", machineapi.ServiceStateEvent_WAITING, `Waiting for service "containerd" to be "up", time sync, network`, false); err != nil {
		return err
	}
	if err := n.wait(ctx, func() bool { return n.timeSynced }); err != nil {
		return err
	}
	security := n.cfg.Machine().Security()
	cert, err := n.issue(security.IssuingCA(), security.CertSANs())
	if err != nil {
		return err
	}
	ln, err := n.opts.Network.Listen(ctx, constants.TrustdPort)
	if err != nil {
		return fmt.Errorf("trustd: %w", ended(ctx, err))
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})))
	securityapi.RegisterSecurityServiceServer(server, &trustd{node: n})
	if err := n.up(ctx, "trustd"); err != nil {
		return err
	}
	return serveGRPC(ctx, server, ln, n.opts.Timing.Stop)
}

type trustd struct {
	securityapi.UnimplementedSecurityServiceServer
	node *Node
}

// Certificate signs a CSR for server authentication only: an organization in it
// would be a role, and is taken out.
func (t *trustd) Certificate(ctx context.Context, req *securityapi.CertificateRequest) (*securityapi.CertificateResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	security := t.node.cfg.Machine().Security()
	switch given := md.Get("token"); {
	case len(given) == 0:
		return nil, status.Error(codes.Unauthenticated, "missing token")
	case subtle.ConstantTimeCompare([]byte(given[0]), []byte(security.Token())) != 1:
		return nil, status.Error(codes.Unauthenticated, "invalid token")
	}
	ca := security.IssuingCA()
	signed, err := x509.NewCertificateFromCSRBytes(ca.Crt, ca.Key, req.GetCsr(),
		x509.KeyUsage(stdx509.KeyUsageDigitalSignature),
		x509.ExtKeyUsage([]stdx509.ExtKeyUsage{stdx509.ExtKeyUsageServerAuth}),
		x509.NotAfter(time.Now().Add(certificateLife)),
		x509.OverrideSubject(func(s *pkix.Name) { s.Organization = nil }),
	)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "failed to sign CSR: %s", err)
	}
	return &securityapi.CertificateResponse{Ca: bytes.Join(t.node.acceptedCAs(), nil), Crt: signed.X509CertificatePEM}, nil
}
