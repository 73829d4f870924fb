package ak_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/tpmtest"
	"github.com/keelson-project/keelson/test/vectors"
)

func wantRefusal(t *testing.T, err error, check string) {
	t.Helper()
	var r *nodeclaim.Refusal
	if !errors.As(err, &r) || r.Check != check {
		t.Errorf("error is %v, want a refusal of %s", err, check)
	}
}

func soft(t testing.TB) *tpmtest.SoftAK {
	t.Helper()
	k, err := tpmtest.NewSoftAK()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestAKOfARealMachine(t *testing.T) {
	area := vectors.Read(t, "good", "ak.tpmpub")
	key, err := ak.Parse(area)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(vectors.Read(t, "good", "ak.pub.pem"))
	want, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if !want.(*ecdsa.PublicKey).Equal(key.Public()) {
		t.Error("the key differs from ak.pub.pem")
	}
	if key.Scheme() != "ecdsa" || key.Hash() != nodeclaim.SHA256 || !bytes.Equal(key.Area(), area) {
		t.Errorf("scheme %s, hash %s, area %x", key.Scheme(), key.Hash(), key.Area())
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](area[2:])
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(key.Name(), name.Buffer) {
		t.Errorf("name is %x, the library computes %x", key.Name(), name.Buffer)
	}
}

func TestThreat05_EachAttributeIsChecked(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*tpm2.TPMAObject)
		check  string
	}{
		"fixedTPM clear":            {func(a *tpm2.TPMAObject) { a.FixedTPM = false }, "ak.fixedtpm"},
		"fixedParent clear":         {func(a *tpm2.TPMAObject) { a.FixedParent = false }, "ak.fixedparent"},
		"sensitiveDataOrigin clear": {func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false }, "ak.sensitivedataorigin"},
		"restricted clear":          {func(a *tpm2.TPMAObject) { a.Restricted = false }, "ak.restricted"},
		"sign clear":                {func(a *tpm2.TPMAObject) { a.SignEncrypt = false }, "ak.sign"},
		"decrypt set":               {func(a *tpm2.TPMAObject) { a.Decrypt = true }, "ak.decrypt"},
		"encryptedDuplication set":  {func(a *tpm2.TPMAObject) { a.EncryptedDuplication = true }, "ak.attributes"},
		"x509sign set":              {func(a *tpm2.TPMAObject) { a.SetReservedBit(19, true) }, "ak.attributes"},
		"reserved bit 0 set":        {func(a *tpm2.TPMAObject) { a.SetReservedBit(0, true) }, "ak.attributes"},
		"reserved bit 31 set":       {func(a *tpm2.TPMAObject) { a.SetReservedBit(31, true) }, "ak.attributes"},
	} {
		t.Run(name, func(t *testing.T) {
			k := soft(t)
			c.change(&k.Area.ObjectAttributes)
			_, err := ak.Parse(k.Public())
			wantRefusal(t, err, c.check)
		})
	}
	for name, change := range map[string]func(*tpm2.TPMAObject){
		"noDA clear":          func(a *tpm2.TPMAObject) { a.NoDA = false },
		"userWithAuth clear":  func(a *tpm2.TPMAObject) { a.UserWithAuth = false },
		"adminWithPolicy set": func(a *tpm2.TPMAObject) { a.AdminWithPolicy = true },
		"stClear set":         func(a *tpm2.TPMAObject) { a.STClear = true },
	} {
		t.Run(name+" is harmless", func(t *testing.T) {
			k := soft(t)
			change(&k.Area.ObjectAttributes)
			if _, err := ak.Parse(k.Public()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A real TPM signs a forged attestation with a real key of its own: only the attribute
// in that key's area gives it away.
func TestThreat05_UnrestrictedKeyOfARealTPMIsRefused(t *testing.T) {
	nonce := []byte("nonce")
	forged := tpm2.Marshal(tpmtest.QuoteAttest(nonce, make([]byte, 32), tpmtest.Select(nodeclaim.SHA256, 0)))
	public, signature, err := tpmtest.UnrestrictedSign(tpmtest.Start(t), forged)
	if err != nil {
		t.Fatal(err)
	}
	_, err = ak.Parse(public)
	wantRefusal(t, err, "ak.restricted")

	// The forgery is perfect but for that bit: with the bit changed by hand it verifies,
	// and then the name is another, for which the TPM activates no credential.
	changed := bytes.Clone(public)
	binary.BigEndian.PutUint32(changed[6:], binary.BigEndian.Uint32(public[6:])|1<<16)
	key, err := ak.Parse(changed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := key.Open(ak.Quote, forged, signature, nonce); err != nil {
		t.Errorf("the forgery does not even verify: %v", err)
	}
}

func ecc(change func(*tpm2.TPMSECCParms)) func(*testing.T) []byte {
	return func(t *testing.T) []byte {
		k := soft(t)
		parms := tpmtest.ECDSAParms(tpm2.TPMAlgSHA256)
		change(parms)
		k.Area.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, parms)
		return k.Public()
	}
}

func TestUnfitPublicAreasAreRefused(t *testing.T) {
	area := func(change func(*tpmtest.SoftAK)) func(*testing.T) []byte {
		return func(t *testing.T) []byte { k := soft(t); change(k); return k.Public() }
	}
	raw := func(change func([]byte) []byte) func(*testing.T) []byte {
		return func(t *testing.T) []byte { return change(soft(t).Public()) }
	}
	for name, c := range map[string]struct {
		area  func(*testing.T) []byte
		check string
	}{
		"nothing":                  {raw(func([]byte) []byte { return nil }), "ak.parse"},
		"one byte":                 {raw(func([]byte) []byte { return []byte{0} }), "ak.parse"},
		"an empty area":            {raw(func([]byte) []byte { return []byte{0, 0} }), "ak.parse"},
		"trailing bytes":           {raw(func(b []byte) []byte { return append(b, 0) }), "ak.parse"},
		"trailing bytes inside":    {raw(func(b []byte) []byte { b = append(b, 0); b[1]++; return b }), "ak.parse"},
		"a truncated area":         {raw(func(b []byte) []byte { return b[:len(b)-1] }), "ak.parse"},
		"more than the size limit": {raw(func([]byte) []byte { return make([]byte, ak.MaxPublicSize+1) }), "ak.size"},
		"a keyed-hash object":      {raw(func([]byte) []byte { return []byte{0, 14, 0, 8, 0, 0x0b, 0, 5, 0, 0x72, 0, 0, 0, 0x10, 0, 0} }), "ak.type"},
		"a SHA-1 name":             {area(func(k *tpmtest.SoftAK) { k.Area.NameAlg = tpm2.TPMAlgSHA1 }), "ak.namealg"},
		"no name algorithm":        {area(func(k *tpmtest.SoftAK) { k.Area.NameAlg = tpm2.TPMAlgNull }), "ak.namealg"},
		"a SHA-1 scheme": {ecc(func(p *tpm2.TPMSECCParms) {
			p.Scheme.Details = tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA1})
		}), "ak.hash"},
		"no scheme":             {ecc(func(p *tpm2.TPMSECCParms) { p.Scheme = tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull} }), "ak.scheme"},
		"a key exchange scheme": {ecc(func(p *tpm2.TPMSECCParms) { p.Scheme.Scheme = tpm2.TPMAlgECDH; ecdh(p) }), "ak.scheme"},
		"a curve of 521 bits":   {ecc(func(p *tpm2.TPMSECCParms) { p.CurveID = tpm2.TPMECCNistP521 }), "ak.curve"},
		"a point off the curve": {area(func(k *tpmtest.SoftAK) { point(k, 32, 1) }), "ak.point"},
		"the point at infinity": {area(func(k *tpmtest.SoftAK) { point(k, 0, 0) }), "ak.point"},
		"coordinates too long":  {area(func(k *tpmtest.SoftAK) { point(k, 33, 1) }), "ak.point"},
		"a symmetric algorithm": {ecc(func(p *tpm2.TPMSECCParms) {
			p.Symmetric = tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgAES,
				KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)), Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB)}
		}), "ak.scheme"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ak.Parse(c.area(t))
			wantRefusal(t, err, c.check)
		})
	}
}

func ecdh(p *tpm2.TPMSECCParms) {
	p.Scheme.Details = tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDH, &tpm2.TPMSKeySchemeECDH{HashAlg: tpm2.TPMAlgSHA256})
}

func point(k *tpmtest.SoftAK, size int, fill byte) {
	b := bytes.Repeat([]byte{fill}, size)
	k.Area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: b}, Y: tpm2.TPM2BECCParameter{Buffer: b}})
}

func TestRSAKeys(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ak.Parse(tpmtest.Sized(tpmtest.RSAArea(&private.PublicKey, tpm2.TPMAlgSHA512)))
	if err != nil {
		t.Fatal(err)
	}
	if key.Scheme() != "rsassa" || key.Hash() != nodeclaim.SHA512 || !private.PublicKey.Equal(key.Public()) {
		t.Errorf("scheme %s, hash %s", key.Scheme(), key.Hash())
	}
	small := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 1023, 1), E: 65537}
	huge := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 4103, 1), E: 65537}
	even := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(0), 2047, 1), E: 65537}
	with := func(key *rsa.PublicKey, change func(*tpm2.TPMSRSAParms)) []byte {
		area := tpmtest.RSAArea(key, tpm2.TPMAlgSHA256)
		parms, err := area.Parameters.RSADetail()
		if err != nil {
			t.Fatal(err)
		}
		change(parms)
		area.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, parms)
		return tpmtest.Sized(area)
	}
	same := func(*tpm2.TPMSRSAParms) {}
	for name, c := range map[string]struct {
		area  []byte
		check string
	}{
		"1024 bits":                            {with(small, same), "ak.strength"},
		"4104 bits":                            {with(huge, same), "ak.strength"},
		"an even modulus":                      {with(even, same), "ak.strength"},
		"another size than the area says":      {with(&private.PublicKey, func(p *tpm2.TPMSRSAParms) { p.KeyBits = 3072 }), "ak.strength"},
		"exponent 3":                           {with(&private.PublicKey, func(p *tpm2.TPMSRSAParms) { p.Exponent = 3 }), "ak.strength"},
		"no scheme":                            {with(&private.PublicKey, func(p *tpm2.TPMSRSAParms) { p.Scheme = tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgNull} }), "ak.scheme"},
		"an encryption scheme":                 {with(&private.PublicKey, oaep), "ak.scheme"},
		"SHA-1":                                {tpmtest.Sized(tpmtest.RSAArea(&private.PublicKey, tpm2.TPMAlgSHA1)), "ak.hash"},
		"a modulus with a zero byte before it": {padded(&private.PublicKey), "ak.strength"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ak.Parse(c.area)
			wantRefusal(t, err, c.check)
		})
	}
}

func oaep(p *tpm2.TPMSRSAParms) {
	p.Scheme = tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgOAEP, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgOAEP, &tpm2.TPMSEncSchemeOAEP{HashAlg: tpm2.TPMAlgSHA256})}
}

func padded(key *rsa.PublicKey) []byte {
	area := tpmtest.RSAArea(key, tpm2.TPMAlgSHA256)
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: append([]byte{0}, key.N.Bytes()...)})
	return tpmtest.Sized(area)
}

func TestP384AK(t *testing.T) {
	id := certified(t, "ek-ecc384.pem") // any P-384 key will do
	point, err := id.Key().(*ecdsa.PublicKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	k := soft(t)
	parms := tpmtest.ECDSAParms(tpm2.TPMAlgSHA256)
	parms.CurveID = tpm2.TPMECCNistP384
	k.Area.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, parms)
	k.Area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:49]}, Y: tpm2.TPM2BECCParameter{Buffer: point[49:]}})
	key, err := ak.Parse(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	if !id.Key().(*ecdsa.PublicKey).Equal(key.Public()) {
		t.Error("another key came out")
	}
}

func certified(t *testing.T, name string) ek.Identity {
	t.Helper()
	roots, err := ek.ParseCertificates(vectors.Read(t, "ca", "swtpm-localca-rootca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	issuers, err := ek.ParseCertificates(vectors.Read(t, "ca", "issuercert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(vectors.Read(t, "good", name))
	id, err := ek.Verify([][]byte{block.Bytes}, nil, ek.Anchors{Roots: roots, Intermediates: issuers, Mode: ek.Certificate},
		time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestChallengeNeedsVerifiedKeysAndASecret(t *testing.T) {
	id := certified(t, "ek-rsa.pem")
	key, err := ak.Parse(soft(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	secret := make([]byte, 32)
	for name, c := range map[string]struct {
		id     ek.Identity
		key    ak.Key
		secret []byte
		rand   io.Reader
	}{
		"no EK":                {ek.Identity{}, key, secret, rand.Reader},
		"no AK":                {id, ak.Key{}, secret, rand.Reader},
		"no secret":            {id, key, nil, rand.Reader},
		"a secret too long":    {id, key, make([]byte, 33), rand.Reader},
		"no randomness":        {id, key, secret, strings.NewReader("")},
		"too little of it":     {id, key, secret, strings.NewReader("short")},
		"a randomness failure": {id, key, secret, iotest.ErrReader(errors.New("broken"))},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := ak.Challenge(c.id, c.key, c.secret, c.rand); err == nil {
				t.Error("no error")
			}
		})
	}
	one, _, err := ak.Challenge(id, key, secret, iotest.OneByteReader(rand.Reader))
	if err != nil {
		t.Fatal(err)
	}
	two, _, err := ak.Challenge(id, key, secret, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(one, two) {
		t.Error("two challenges are equal")
	}
}

func TestQualifiedNameOfAnotherHierarchyIsNotEndorsement(t *testing.T) {
	id := certified(t, "ek-rsa.pem")
	key, err := ak.Parse(soft(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, qualified := range map[string][]byte{
		"none":     nil,
		"the name": key.Name(),
		"zeroes":   make([]byte, 34),
	} {
		if key.InEndorsement(qualified, id) {
			t.Errorf("%s is taken for a qualified name in the endorsement hierarchy", name)
		}
	}
	if (ak.Key{}).InEndorsement(nil, id) || key.InEndorsement(nil, ek.Identity{}) {
		t.Error("zero values are in the endorsement hierarchy")
	}
}

// The AK of the measured boots lives in the owner hierarchy, so its quotes' counters are
// obfuscated: its qualified name tells.
func TestAKOfAnotherHierarchyIsToldApart(t *testing.T) {
	key, err := ak.Parse(vectors.Read(t, "good", "ak.tpmpub"))
	if err != nil {
		t.Fatal(err)
	}
	st, err := key.Open(ak.Quote, vectors.Read(t, "good", "quote.attest"), vectors.Read(t, "good", "quote.sig"), []byte(vectors.Nonce))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ek-rsa.pem", "ek-ecc384.pem"} {
		if key.InEndorsement(st.Attest().QualifiedSigner.Buffer, certified(t, name)) {
			t.Errorf("the AK is taken for one under %s", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(vectors.Read(f, "good", "ak.tpmpub"))
	k := soft(f)
	f.Add(k.Public())
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tpmtest.Sized(tpmtest.RSAArea(&private.PublicKey, tpm2.TPMAlgSHA256)))
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := ak.Parse(data)
		if err != nil {
			var r *nodeclaim.Refusal
			if !errors.As(err, &r) {
				t.Errorf("%v is no refusal", err)
			}
			return
		}
		if !bytes.Equal(key.Area(), data) || len(key.Name()) < 34 || key.Public() == nil {
			t.Errorf("key of area %x, name %x", key.Area(), key.Name())
		}
	})
}
