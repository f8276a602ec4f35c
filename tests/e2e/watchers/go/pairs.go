package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"time"
)

type pair struct {
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
}

// printPairs prints n self-signed certificates with their keys; the serial number says which is which.
func printPairs(n int) {
	pairs := make([]pair, 0, n)
	for serial := 1; serial <= n; serial++ {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		check(err)
		template := x509.Certificate{
			SerialNumber: big.NewInt(int64(serial)),
			Subject:      pkix.Name{CommonName: "watched"},
			NotBefore:    time.Now().Add(-time.Hour),
			NotAfter:     time.Now().Add(24 * time.Hour),
		}
		certificate, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
		check(err)
		private, err := x509.MarshalPKCS8PrivateKey(key)
		check(err)
		pairs = append(pairs, pair{
			Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})),
			Key:         string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
		})
	}
	check(json.NewEncoder(os.Stdout).Encode(pairs))
}
