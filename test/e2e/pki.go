package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// authority signs every certificate of the cluster.
type authority struct {
	certificate *x509.Certificate
	pem         string
	key         *ecdsa.PrivateKey
	keyPEM      string
}

// newAuthority makes a self-signed authority that is valid for a day.
func newAuthority() (*authority, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	template := certificateTemplate("weft-e2e")
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("signing the authority's certificate: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	return &authority{certificate, encodePEM("CERTIFICATE", der), key, keyPEM}, err
}

// issue returns a certificate and its key in PEM, good for a server at the names and addresses and for a client.
func (a *authority) issue(commonName, organization string, names []string, addresses []net.IP) (certificate, key string, err error) {
	private, key, err := newKey()
	if err != nil {
		return "", "", err
	}
	template := certificateTemplate(commonName)
	if organization != "" {
		template.Subject.Organization = []string{organization}
	}
	template.DNSNames, template.IPAddresses = names, addresses
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &private.PublicKey, a.key)
	if err != nil {
		return "", "", fmt.Errorf("signing the certificate of %s: %w", commonName, err)
	}
	return encodePEM("CERTIFICATE", der), key, nil
}

// kubeconfig returns a kubeconfig for a user who proves with a certificate that he is in the organization.
func (a *authority) kubeconfig(server, user, organization string) (string, error) {
	certificate, key, err := a.issue(user, organization, nil, nil)
	if err != nil {
		return "", err
	}
	encode := base64.StdEncoding.EncodeToString
	return a.kubeconfigFor(server, fmt.Sprintf("client-certificate-data: %s, client-key-data: %s", encode([]byte(certificate)), encode([]byte(key)))), nil
}

// kubeconfigFor returns a kubeconfig with the given credentials, which are the inside of a YAML flow mapping.
func (a *authority) kubeconfigFor(server, credentials string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: e2e
contexts: [{name: e2e, context: {cluster: e2e, user: e2e}}]
clusters: [{name: e2e, cluster: {server: "%s", certificate-authority-data: %s}}]
users: [{name: e2e, user: {%s}}]
`, server, base64.StdEncoding.EncodeToString([]byte(a.pem)), credentials)
}

func newKey() (*ecdsa.PrivateKey, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", fmt.Errorf("generating a key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	return key, encodePEM("EC PRIVATE KEY", der), err
}

func certificateTemplate(commonName string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62)) // since Go 1.24 reading random numbers never fails
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: commonName},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
	}
}

func encodePEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
