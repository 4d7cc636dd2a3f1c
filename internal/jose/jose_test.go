package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/bits"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func edKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed([]byte(strings.Repeat("s", 32))) }

func signers(t testing.TB) map[string]*Signer {
	t.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	all := map[string]*Signer{}
	for alg, key := range map[string]crypto.Signer{EdDSA: edKey(), ES256: ec, RS256: rs} {
		s, err := NewSigner(key, "")
		require.NoError(t, err)
		require.Equal(t, alg, s.Key().Algorithm())
		all[alg] = s
	}
	return all
}

// forge signs any header and payload with edKey.
func forge(header, payload string) string {
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	return text + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(edKey(), []byte(text)))
}

func TestSignAndVerify(t *testing.T) {
	all := signers(t)
	for alg, s := range all {
		t.Run(alg, func(t *testing.T) {
			token, err := s.Sign("at+jwt", map[string]any{"iss": "https://social.example", "aud": []string{"a", "b"}, "exp": 12.5, "n": 7})
			require.NoError(t, err)
			set, err := json.Marshal(Set{s.Key()})
			require.NoError(t, err)
			require.NotContains(t, string(set), `"d":`)
			keys, err := ParseSet(set)
			require.NoError(t, err)
			require.Equal(t, s.Key().Thumbprint(), keys[0].Thumbprint())
			require.Equal(t, s.Key().ID(), keys[0].ID())

			claims, err := (&Rules{Types: []string{"application/AT+JWT", "at+jwt"}}).Claims(token, keys)
			require.NoError(t, err)
			require.Equal(t, "https://social.example", claims.Issuer)
			require.Equal(t, []string{"a", "b"}, claims.Audience)
			require.Equal(t, time.Unix(12, 5e8).UTC(), claims.Expires)
			var n int
			there, err := claims.Get("n", &n)
			require.NoError(t, err)
			require.True(t, there)
			require.Equal(t, 7, n)
			there, err = claims.Get("iss", &n)
			require.ErrorIs(t, err, ErrInvalid)
			require.True(t, there)
			there, err = claims.Get("N", &n)
			require.NoError(t, err)
			require.False(t, there, "names are compared as they stand")

			for other, o := range all {
				if other != alg {
					_, err = (&Rules{Types: []string{"at+jwt"}}).Claims(token, Set{o.Key()})
					require.ErrorIs(t, err, ErrNoKey)
				}
			}
			_, err = (&Rules{Algorithms: []string{}, Types: []string{"at+jwt"}}).Claims(token, keys)
			require.ErrorIs(t, err, ErrInvalid, "no algorithm is allowed")
			_, err = (&Rules{}).Claims(token, keys)
			require.ErrorIs(t, err, ErrInvalid, "no type is allowed")

			embedded, err := s.SignEmbedded("dpop+jwt", map[string]any{"jti": "1"})
			require.NoError(t, err)
			claims, key, err := (&Rules{Types: []string{"dpop+jwt"}, Embedded: true}).EmbeddedClaims(embedded)
			require.NoError(t, err)
			require.Equal(t, "1", claims.ID)
			require.Equal(t, s.Key().Thumbprint(), key.Thumbprint())
		})
	}
}

// RFC 9864 §2.2: Ed25519 is what EdDSA is with that curve, by another name, which some clients have.
func TestEd25519(t *testing.T) {
	s, err := NewSigner(edKey(), "k")
	require.NoError(t, err)
	x := base64.RawURLEncoding.EncodeToString(edKey().Public().(ed25519.PublicKey))
	key, err := ParseKey([]byte(`{"kty":"OKP","crv":"Ed25519","alg":"Ed25519","kid":"k","x":"` + x + `"}`))
	require.NoError(t, err)
	other, err := NewKey(ed25519.NewKeyFromSeed(make([]byte, 32)).Public(), "k")
	require.NoError(t, err)
	rules := &Rules{Types: []string{"JWT"}}
	token := forge(`{"alg":"Ed25519","typ":"JWT","kid":"k"}`, `{"sub":"u"}`)
	for _, keys := range []Set{{s.Key()}, {key}} {
		claims, err := rules.Claims(token, keys)
		require.NoError(t, err)
		require.Equal(t, "u", claims.Subject)
	}
	_, err = rules.Claims(token, Set{other})
	require.ErrorIs(t, err, ErrInvalid)
	require.NotErrorIs(t, err, ErrNoKey)
	for i := range token {
		if b := []byte(token); b[i] != '.' && i+1 < len(b) && b[i+1] != '.' {
			b[i] ^= 1
			_, err = rules.Claims(string(b), Set{key})
			require.ErrorIs(t, err, ErrInvalid, i)
		}
	}
	_, err = (&Rules{Types: []string{"JWT"}, Algorithms: []string{EdDSA}}).Claims(token, Set{key})
	require.ErrorIs(t, err, ErrInvalid, "only what is allowed")
	_, embedded, err := (&Rules{Types: []string{"dpop+jwt"}, Embedded: true}).EmbeddedClaims(
		forge(`{"alg":"Ed25519","typ":"dpop+jwt","jwk":{"kty":"OKP","crv":"Ed25519","x":"`+x+`"}}`, `{}`))
	require.NoError(t, err)
	require.Equal(t, key.Thumbprint(), embedded.Thumbprint())
	_, err = ParseKey([]byte(`{"kty":"EC","crv":"P-256","alg":"Ed25519","x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs","y":"9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA"}`))
	require.ErrorIs(t, err, ErrInvalid)
}

// Every byte of a JWS matters, and each of them has one form.
func TestEveryByteOfAJWS(t *testing.T) {
	s, err := NewSigner(edKey(), "")
	require.NoError(t, err)
	rules, keys := &Rules{Types: []string{"JWT"}}, Set{s.Key()}
	token, err := s.Sign("JWT", map[string]any{"sub": "u", "x": "y"})
	require.NoError(t, err)
	_, err = rules.Claims(token, keys)
	require.NoError(t, err)
	for i := range len(token) {
		last := i+1 == len(token) || token[i+1] == '.' // where an encoding may have bits to spare
		for b := range 256 {
			if token[i] == byte(b) || !last && bits.OnesCount8(token[i]^byte(b)) > 1 {
				continue
			}
			changed := token[:i] + string([]byte{byte(b)}) + token[i+1:]
			if _, err := rules.Claims(changed, keys); err == nil {
				t.Fatalf("byte %d may be %q as well as %q", i, byte(b), token[i])
			}
		}
		_, err = rules.Claims(token[:i], keys)
		require.ErrorIs(t, err, ErrInvalid)
	}
	for _, more := range []string{"A", "=", ".", "\n", " ", ".A"} {
		_, err = rules.Claims(token+more, keys)
		require.ErrorIs(t, err, ErrInvalid, more)
		_, err = rules.Claims(more+token, keys)
		require.ErrorIs(t, err, ErrInvalid, more)
	}
}

func TestVerifyRefuses(t *testing.T) {
	s, err := NewSigner(edKey(), "k")
	require.NoError(t, err)
	jwk, err := json.Marshal(s.Key())
	require.NoError(t, err)
	rules := &Rules{Types: []string{"JWT"}}
	const good, claims = `{"alg":"EdDSA","typ":"JWT","kid":"k"}`, `{"sub":"u"}`
	_, err = rules.Claims(forge(good, claims), Set{s.Key()})
	require.NoError(t, err)
	for name, token := range map[string]string{
		"nothing":                   "",
		"two dots":                  "..",
		"alg none":                  forge(`{"alg":"none","typ":"JWT"}`, claims),
		"alg None":                  forge(`{"alg":"None","typ":"JWT"}`, claims),
		"alg missing":               forge(`{"typ":"JWT"}`, claims),
		"alg in another case":       forge(`{"alg":"eddsa","typ":"JWT"}`, claims),
		"ALG":                       forge(`{"ALG":"EdDSA","typ":"JWT"}`, claims),
		"alg is a list":             forge(`{"alg":["EdDSA"],"typ":"JWT"}`, claims),
		"alg of another key":        forge(`{"alg":"ES256","typ":"JWT"}`, claims),
		"alg with a secret":         forge(`{"alg":"HS256","typ":"JWT"}`, claims),
		"alg of PSS":                forge(`{"alg":"PS256","typ":"JWT"}`, claims),
		"alg twice":                 forge(`{"alg":"none","alg":"EdDSA","typ":"JWT"}`, claims),
		"alg twice, escaped":        forge(`{"alg":"EdDSA","\u0061lg":"EdDSA","typ":"JWT"}`, claims),
		"typ missing":               forge(`{"alg":"EdDSA"}`, claims),
		"typ empty":                 forge(`{"alg":"EdDSA","typ":""}`, claims),
		"typ null":                  forge(`{"alg":"EdDSA","typ":null}`, claims),
		"typ of another kind":       forge(`{"alg":"EdDSA","typ":"at+jwt"}`, claims),
		"typ with a longer path":    forge(`{"alg":"EdDSA","typ":"application/x/JWT"}`, claims),
		"typ of another tree":       forge(`{"alg":"EdDSA","typ":"text/JWT"}`, claims),
		"typ is a list":             forge(`{"alg":"EdDSA","typ":["JWT"]}`, claims),
		"typ twice":                 forge(`{"alg":"EdDSA","typ":"JWT","typ":"JWT"}`, claims),
		"crit":                      forge(`{"alg":"EdDSA","typ":"JWT","crit":["exp"],"exp":1}`, claims),
		"crit empty":                forge(`{"alg":"EdDSA","typ":"JWT","crit":[]}`, claims),
		"crit null":                 forge(`{"alg":"EdDSA","typ":"JWT","crit":null}`, claims),
		"b64":                       forge(`{"alg":"EdDSA","typ":"JWT","b64":true}`, claims),
		"a key of its own":          forge(`{"alg":"EdDSA","typ":"JWT","jwk":`+string(jwk)+`}`, claims),
		"jku":                       forge(`{"alg":"EdDSA","typ":"JWT","jku":"https://attacker.example"}`, claims),
		"x5u":                       forge(`{"alg":"EdDSA","typ":"JWT","x5u":"https://attacker.example"}`, claims),
		"x5c":                       forge(`{"alg":"EdDSA","typ":"JWT","x5c":["AA"]}`, claims),
		"another kid":               forge(`{"alg":"EdDSA","typ":"JWT","kid":"other"}`, claims),
		"kid empty":                 forge(`{"alg":"EdDSA","typ":"JWT","kid":""}`, claims),
		"kid a number":              forge(`{"alg":"EdDSA","typ":"JWT","kid":1}`, claims),
		"kid too long":              forge(`{"alg":"EdDSA","typ":"JWT","kid":"`+strings.Repeat("k", 257)+`"}`, claims),
		"header is a list":          forge(`["EdDSA"]`, claims),
		"header is null":            forge(`null`, claims),
		"header is not JSON":        forge(`{"alg":"EdDSA","typ":"JWT"`, claims),
		"header and more":           forge(`{"alg":"EdDSA","typ":"JWT"}{}`, claims),
		"header is not UTF-8":       forge("{\"alg\":\"EdDSA\",\"typ\":\"JWT\",\"x\":\"\xff\"}", claims),
		"nested twice in header":    forge(`{"alg":"EdDSA","typ":"JWT","x":{"a":1,"a":2}}`, claims),
		"signature of others":       forge(`{"alg":"EdDSA","typ":"JWT"}`, claims)[:40] + "A" + forge(`{"alg":"EdDSA","typ":"JWT"}`, claims)[41:],
		"JSON serialization":        `{"payload":"e30","protected":"eyJhbGciOiJFZERTQSJ9","signature":"AA"}`,
		"five parts":                "a.b.c.d.e",
		"too large":                 forge(good, `{"sub":"`+strings.Repeat("u", 8<<10)+`"}`),
		"deep":                      forge(good, strings.Repeat("[", 6000)),
		"claims are a list":         forge(good, `[]`),
		"claims are null":           forge(good, `null`),
		"claims are text":           forge(good, `"x"`),
		"claims are nothing":        forge(good, ``),
		"claims are not UTF-8":      forge(good, "{\"sub\":\"\xff\"}"),
		"sub twice":                 forge(good, `{"sub":"u","sub":"v"}`),
		"sub twice, escaped":        forge(good, `{"sub":"u","s\u0075b":"v"}`),
		"nested twice":              forge(good, `{"sub":"u","act":[{"sub":"a","sub":"b"}]}`),
		"sub empty":                 forge(good, `{"sub":""}`),
		"sub a number":              forge(good, `{"sub":1}`),
		"iss a list":                forge(good, `{"iss":["a"]}`),
		"jti null":                  forge(good, `{"jti":null}`),
		"aud empty":                 forge(good, `{"aud":[]}`),
		"aud empty text":            forge(good, `{"aud":[""]}`),
		"aud with a number":         forge(good, `{"aud":["a",1]}`),
		"aud an object":             forge(good, `{"aud":{"a":1}}`),
		"aud null":                  forge(good, `{"aud":null}`),
		"exp text":                  forge(good, `{"exp":"1"}`),
		"exp null":                  forge(good, `{"exp":null}`),
		"exp negative":              forge(good, `{"exp":-1}`),
		"exp too late":              forge(good, `{"exp":253402300800}`),
		"exp beyond all numbers":    forge(good, `{"exp":1e999}`),
		"nbf true":                  forge(good, `{"nbf":true}`),
		"iat a list":                forge(good, `{"iat":[1]}`),
		"nothing but the signature": ".." + strings.Split(forge(good, claims), ".")[2],
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rules.Claims(token, Set{s.Key()})
			require.ErrorIs(t, err, ErrInvalid)
			require.NotContains(t, err.Error(), "attacker")
		})
	}
	for _, typ := range []string{"JWT", "jwt", "application/jwt", "Application/JWT"} {
		_, err := rules.Claims(forge(`{"alg":"EdDSA","typ":"`+typ+`"}`, claims), Set{s.Key()})
		require.NoError(t, err, typ)
	}
	_, err = rules.Claims(forge(good, claims), nil)
	require.ErrorIs(t, err, ErrNoKey)
	j, err := rules.Parse(forge(good, `{"sub":"u"}`))
	require.NoError(t, err)
	require.Equal(t, "k", j.KeyID())
	unverified, err := j.UnverifiedClaims()
	require.NoError(t, err)
	require.Equal(t, "u", unverified.Subject)
	_, _, err = j.VerifyEmbedded()
	require.ErrorIs(t, err, ErrNoKey)
}

func TestEmbeddedRefuses(t *testing.T) {
	rules := &Rules{Types: []string{"dpop+jwt"}, Embedded: true}
	x := base64.RawURLEncoding.EncodeToString(edKey().Public().(ed25519.PublicKey))
	good := `{"kty":"OKP","crv":"Ed25519","x":"` + x + `"}`
	_, _, err := rules.EmbeddedClaims(forge(`{"alg":"EdDSA","typ":"dpop+jwt","jwk":`+good+`}`, `{}`))
	require.NoError(t, err)
	other := base64.RawURLEncoding.EncodeToString(ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey))
	for name, jwk := range map[string]string{
		"none":           ``,
		"null":           `null`,
		"text":           `"x"`,
		"private":        `{"kty":"OKP","crv":"Ed25519","x":"` + x + `","d":"AA"}`,
		"a secret":       `{"kty":"oct","k":"AAAA"}`,
		"another":        `{"kty":"OKP","crv":"Ed25519","x":"` + other + `"}`,
		"of another alg": `{"kty":"EC","crv":"P-256","x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs","y":"9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA"}`,
	} {
		t.Run(name, func(t *testing.T) {
			header := `{"alg":"EdDSA","typ":"dpop+jwt","jwk":` + jwk + `}`
			if jwk == "" {
				header = `{"alg":"EdDSA","typ":"dpop+jwt"}`
			}
			_, _, err := rules.EmbeddedClaims(forge(header, `{}`))
			require.ErrorIs(t, err, ErrInvalid)
		})
	}
}

func TestParseKeyRefuses(t *testing.T) {
	const ed = `"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"`
	const ec = `"kty":"EC","crv":"P-256","x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs","y":"9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA"`
	rsaKey := func(bits int, e string) string {
		n := make([]byte, bits/8)
		n[0], n[len(n)-1] = 0x80, 1
		return `{"kty":"RSA","e":"` + e + `","n":"` + base64.RawURLEncoding.EncodeToString(n) + `"}`
	}
	for name, text := range map[string]string{
		"Ed25519":         `{` + ed + `}`,
		"P-256":           `{` + ec + `}`,
		"RSA of 2048":     rsaKey(2048, "AQAB"),
		"RSA of 4096":     rsaKey(4096, "Aw"),
		"alg, use, ops":   `{` + ed + `,"alg":"EdDSA","use":"sig","key_ops":["verify"],"ext":true,"kid":"a"}`,
		"what is unknown": `{` + ed + `,"x5t":"AA","unknown":{"a":[1]}}`,
	} {
		_, err := ParseKey([]byte(text))
		require.NoError(t, err, name)
	}
	for name, text := range map[string]string{
		"nothing":                 ``,
		"null":                    `null`,
		"a list":                  `[]`,
		"no kty":                  `{"crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`,
		"kty twice":               `{"kty":"EC",` + ed + `}`,
		"kty in another case":     strings.Replace(`{`+ed+`}`, "kty", "KTY", 1),
		"a secret":                `{"kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`,
		"Ed448":                   `{"kty":"OKP","crv":"Ed448","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`,
		"X25519":                  `{"kty":"OKP","crv":"X25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`,
		"P-384":                   strings.Replace(`{`+ec+`}`, "P-256", "P-384", 1),
		"secp256k1":               strings.Replace(`{`+ec+`}`, "P-256", "secp256k1", 1),
		"EC with Ed25519":         strings.Replace(`{`+ed+`}`, "OKP", "EC", 1),
		"AKP":                     `{"kty":"AKP","alg":"ML-DSA-44","pub":"AA"}`,
		"not a point":             strings.Replace(`{`+ec+`}`, "l8tFrhx", "l8tFrhy", 1),
		"a point of 31 bytes":     `{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}`,
		"no y":                    `{"kty":"EC","crv":"P-256","x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs"}`,
		"x of 31 bytes":           `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHUQ"}`,
		"x is not canonical":      strings.Replace(`{`+ed+`}`, "URo", "URp", 1),
		"x with padding":          strings.Replace(`{`+ed+`}`, "URo", "URo=", 1),
		"x with a line break":     strings.Replace(`{`+ed+`}`, "URo", `UR\no`, 1),
		"x in the other alphabet": strings.Replace(`{`+ed+`}`, "VS_7", "VS/7", 1),
		"x a number":              `{"kty":"OKP","crv":"Ed25519","x":1}`,
		"x null":                  `{"kty":"OKP","crv":"Ed25519","x":null}`,
		"d":                       `{` + ed + `,"d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"}`,
		"d empty":                 `{` + ed + `,"d":""}`,
		"d null":                  `{` + ed + `,"d":null}`,
		"k":                       `{` + ed + `,"k":"AA"}`,
		"p":                       strings.TrimSuffix(rsaKey(2048, "AQAB"), "}") + `,"p":"AA"}`,
		"oth":                     strings.TrimSuffix(rsaKey(2048, "AQAB"), "}") + `,"oth":[]}`,
		"RSA of 1024":             rsaKey(1024, "AQAB"),
		"RSA of 2040":             rsaKey(2040, "AQAB"),
		"RSA of 4104":             rsaKey(4104, "AQAB"),
		"RSA, e of 1":             rsaKey(2048, "AQ"),
		"RSA, e even":             rsaKey(2048, "Ag"),
		"RSA, e of 32 bits":       rsaKey(2048, "_____w"),
		"RSA, e of 5 bytes":       rsaKey(2048, "AQAAAAE"),
		"RSA, zeros in front":     rsaKey(2048, "AAEAAQ"),
		"RSA without n":           `{"kty":"RSA","e":"AQAB"}`,
		"RSA with crv":            strings.TrimSuffix(rsaKey(2048, "AQAB"), "}") + `,"crv":"P-256"}`,
		"alg of another key":      `{` + ed + `,"alg":"ES256"}`,
		"alg of another name":     `{` + ed + `,"alg":"Ed448"}`,
		"alg of PSS":              strings.TrimSuffix(rsaKey(2048, "AQAB"), "}") + `,"alg":"PS256"}`,
		"alg null":                `{` + ed + `,"alg":null}`,
		"use enc":                 `{` + ed + `,"use":"enc"}`,
		"use empty":               `{` + ed + `,"use":""}`,
		"key_ops of signing":      `{` + ed + `,"key_ops":["sign"]}`,
		"key_ops of both":         `{` + ed + `,"key_ops":["sign","verify"]}`,
		"key_ops of nothing":      `{` + ed + `,"key_ops":[]}`,
		"key_ops text":            `{` + ed + `,"key_ops":"verify"}`,
		"kid empty":               `{` + ed + `,"kid":""}`,
		"kid too long":            `{` + ed + `,"kid":"` + strings.Repeat("k", 257) + `"}`,
		"too large":               `{` + ed + `,"x5t":"` + strings.Repeat("A", 8<<10) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseKey([]byte(text))
			require.ErrorIs(t, err, ErrInvalid)
		})
	}
}

func TestNewKeyRefuses(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	for _, public := range []crypto.PublicKey{nil, "text", []byte("secret"), ed25519.PublicKey("short"), (*ecdsa.PublicKey)(nil), (*rsa.PublicKey)(nil), &rsa.PublicKey{}, &p384.PublicKey, p384, edKey()} {
		_, err := NewKey(public, "")
		require.ErrorIs(t, err, ErrInvalid)
	}
	for _, private := range []crypto.Signer{nil, ed25519.PrivateKey("short"), (*ecdsa.PrivateKey)(nil), (*rsa.PrivateKey)(nil), p384, &rsa.PrivateKey{}} {
		_, err := NewSigner(private, "")
		require.ErrorIs(t, err, ErrInvalid)
	}
}

func TestParseSet(t *testing.T) {
	second := strings.Replace(rfc8037Key, "{", `{"kid":"2",`, 1)
	ec := `{"kid":"2","kty":"EC","crv":"P-256","x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs","y":"9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA"}`
	set, err := ParseSet([]byte(`{"keys":[` + rfc7638Key + `,` + second + `],"more":1}`))
	require.NoError(t, err)
	require.Len(t, set, 2)
	for name, text := range map[string]string{
		"a key":          rfc8037Key,
		"nothing":        ``,
		"no keys":        `{"keys":[]}`,
		"null":           `{"keys":null}`,
		"an object":      `{"keys":{}}`,
		"keys twice":     `{"keys":[` + rfc7638Key + `],"keys":[` + rfc7638Key + `]}`,
		"one bad":        `{"keys":[` + rfc7638Key + `,{"kty":"oct","k":"AA"}]}`,
		"one null":       `{"keys":[` + rfc7638Key + `,null]}`,
		"the same key":   `{"keys":[` + rfc8037Key + `,` + second + `]}`,
		"the same kid":   `{"keys":[` + ec + `,` + second + `]}`,
		"17":             `{"keys":[` + strings.Repeat(rfc8037Key+",", 16) + rfc8037Key + `]}`,
		"larger than 64": `{"keys":[` + rfc7638Key + `],"more":"` + strings.Repeat("x", 64<<10) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseSet([]byte(text))
			require.ErrorIs(t, err, ErrInvalid)
		})
	}
	empty, err := json.Marshal(Set(nil))
	require.NoError(t, err)
	require.JSONEq(t, `{"keys":[]}`, string(empty))
}

// Without a kid in the header every key of the algorithm is tried; with one, that key alone.
func TestKeysByID(t *testing.T) {
	s, err := NewSigner(edKey(), "new")
	require.NoError(t, err)
	old, err := NewKey(ed25519.NewKeyFromSeed(make([]byte, 32)).Public(), "old")
	require.NoError(t, err)
	rules := &Rules{Types: []string{"JWT"}}
	both := Set{old, s.Key()}
	for header, want := range map[string]error{
		`{"alg":"EdDSA","typ":"JWT"}`:             nil,
		`{"alg":"EdDSA","typ":"JWT","kid":"new"}`: nil,
		`{"alg":"EdDSA","typ":"JWT","kid":"old"}`: ErrInvalid,
		`{"alg":"EdDSA","typ":"JWT","kid":"x"}`:   ErrNoKey,
	} {
		_, err := rules.Claims(forge(header, `{}`), both)
		require.ErrorIs(t, err, want, header)
	}
}

func TestLive(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for claims, want := range map[string]string{
		`{"exp":1000001}`:   "",
		`{"exp":1000000.5}`: "",
		`{"exp":1000001,"nbf":1000010,"iat":1000010}`:  "",
		`{"exp":1000001,"nbf":1000010.5}`:              "nbf is to come",
		`{"exp":1000001,"iat":1000011}`:                "iat is to come",
		`{"exp":1000000}`:                              "expired",
		`{"exp":0}`:                                    "expired",
		`{"iat":1000000}`:                              "no exp",
		`{"exp":1000001,"nbf":"1000010","iat":999999}`: "nbf is not a time",
	} {
		c, err := ParseClaims([]byte(claims))
		if err == nil {
			err = c.Live(now, 10*time.Second)
		}
		if want == "" {
			require.NoError(t, err, claims)
		} else {
			require.EqualError(t, err, "jose: invalid: "+want, claims)
		}
	}
}

func FuzzParse(f *testing.F) {
	s, err := NewSigner(edKey(), "k")
	require.NoError(f, err)
	good, err := s.Sign("JWT", map[string]any{"sub": "u", "aud": "a", "exp": 1})
	require.NoError(f, err)
	proof, err := s.SignEmbedded("JWT", map[string]any{"jti": "1"})
	require.NoError(f, err)
	for _, seed := range []string{good, proof, "", "..", forge(`{"alg":"none"}`, `{}`), forge(`{"alg":"EdDSA","typ":"JWT","crit":[]}`, `{}`)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, embedded := range []bool{false, true} {
			rules := &Rules{Types: []string{"JWT", ""}, Embedded: embedded}
			j, err := rules.Parse(text)
			if err != nil {
				require.ErrorIs(t, err, ErrInvalid)
				continue
			}
			require.Equal(t, 2, strings.Count(text, "."))
			_, _ = j.UnverifiedClaims()
			if payload, err := j.Verify(Set{s.Key()}); err == nil && text != good {
				// Only whoever has the key can make one, and the fuzzer does not.
				require.Contains(t, []string{good, proof, forge(`{"alg":"none"}`, `{}`)}, text, "%s", payload)
			}
		}
	})
}

func FuzzParseSet(f *testing.F) {
	for _, seed := range []string{rfc7638Key, rfc8037Key, `{"keys":[` + rfc7638Key + `,` + rfc8037Key + `]}`, `{"keys":[{"kty":"EC","crv":"P-256","x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs","y":"9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA"}]}`, `{}`, `{"keys":[{}]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if k, err := ParseKey(text); err == nil {
			again, err := json.Marshal(k)
			require.NoError(t, err)
			same, err := ParseKey(again)
			require.NoError(t, err, "%s", again)
			require.Equal(t, k.Thumbprint(), same.Thumbprint())
			require.Equal(t, k.ID(), same.ID())
		}
		set, err := ParseSet(text)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalid)
			return
		}
		again, err := json.Marshal(set)
		require.NoError(t, err)
		same, err := ParseSet(again)
		require.NoError(t, err, "%s", again)
		require.Len(t, same, len(set))
	})
}

func Example() {
	signer, err := NewSigner(edKey(), "2026-11")
	if err != nil {
		panic(err)
	}
	token, err := signer.Sign("at+jwt", map[string]any{"iss": "https://social.example", "exp": 1800000000})
	if err != nil {
		panic(err)
	}
	published, err := json.Marshal(Set{signer.Key()})
	if err != nil {
		panic(err)
	}
	keys, err := ParseSet(published)
	if err != nil {
		panic(err)
	}
	claims, err := (&Rules{Types: []string{"at+jwt"}}).Claims(token, keys)
	fmt.Println(claims.Issuer, claims.Expires.Format(time.RFC3339), err)
	_, err = (&Rules{Types: []string{"JWT"}}).Claims(token, keys)
	fmt.Println(err)
	// Output:
	// https://social.example 2027-01-15T08:00:00Z <nil>
	// jose: invalid: typ is not allowed: "at+jwt"
}
