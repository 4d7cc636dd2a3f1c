package jose

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const rfc7638Key = `{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}`

// RFC 7638 §3.1
func TestThumbprintOfRFC7638(t *testing.T) {
	k, err := ParseKey([]byte(rfc7638Key))
	require.NoError(t, err)
	require.Equal(t, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", k.Thumbprint())
	require.Equal(t, "2011-04-29", k.ID())
	require.Equal(t, RS256, k.Algorithm())
}

const rfc8037Key = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`

// RFC 8037 appendix A
func TestVectorsOfRFC8037(t *testing.T) {
	k, err := ParseKey([]byte(rfc8037Key)) // A.2
	require.NoError(t, err)
	require.Equal(t, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k", k.Thumbprint()) // A.3
	require.Equal(t, k.Thumbprint(), k.ID())

	const signed = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg" // A.4
	j, err := (&Rules{Types: []string{""}}).Parse(signed)
	require.NoError(t, err)
	payload, err := j.Verify(Set{k}) // A.5
	require.NoError(t, err)
	require.Equal(t, "Example of Ed25519 signing", string(payload))

	seed, err := base64.RawURLEncoding.DecodeString("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A") // A.1
	require.NoError(t, err)
	signer, err := NewSigner(ed25519.NewKeyFromSeed(seed), "")
	require.NoError(t, err)
	require.Equal(t, k.Thumbprint(), signer.Key().Thumbprint())
	// Ours has a kid in its header: the signature of A.4 is made of the same key and text.
	again, err := signer.signBytes("", payload, false)
	require.NoError(t, err)
	j, err = (&Rules{Types: []string{""}}).Parse(again)
	require.NoError(t, err)
	got, err := j.Verify(Set{k})
	require.NoError(t, err)
	require.Equal(t, payload, got)
}

// RFC 9449: the proofs of figures 2, 6 and 12, their key's thumbprint in figure 8, the hash of the token of figure 12.
func TestProofsOfRFC9449(t *testing.T) {
	const head = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19"
	rules := &Rules{Types: []string{"dpop+jwt"}, Embedded: true}
	for _, proof := range []struct {
		name, text, jti, htm, htu, ath string
		iat                            int64
	}{
		{"figure 2", head + ".eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg",
			"-BwC3ESc6acc2lTc", "POST", "https://server.example.com/token", "", 1562262616},
		{"figure 6", head + ".eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjY1Mjk2fQ.pAqut2IRDm_De6PR93SYmGBPXpwrAk90e8cP2hjiaG5QsGSuKDYW7_X620BxqhvYC8ynrrvZLTk41mSRroapUA",
			"-BwC3ESc6acc2lTc", "POST", "https://server.example.com/token", "", 1562265296},
		{"figure 12", head + ".eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA",
			"e1j3V_bKic8-LAEB", "GET", "https://resource.example.org/protectedresource", "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo", 1562262618},
	} {
		t.Run(proof.name, func(t *testing.T) {
			claims, key, err := rules.EmbeddedClaims(proof.text)
			require.NoError(t, err)
			require.Equal(t, "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I", key.Thumbprint())
			require.Equal(t, proof.jti, claims.ID)
			require.Equal(t, time.Unix(proof.iat, 0).UTC(), claims.IssuedAt)
			for name, want := range map[string]string{"htm": proof.htm, "htu": proof.htu, "ath": proof.ath} {
				var got string
				there, err := claims.Get(name, &got)
				require.NoError(t, err)
				require.Equal(t, want != "", there)
				require.Equal(t, want, got)
			}
			_, _, err = (&Rules{Types: []string{"JWT", ""}, Embedded: true}).EmbeddedClaims(proof.text)
			require.ErrorIs(t, err, ErrInvalid, "a proof is nothing else")
			_, err = (&Rules{Types: []string{"dpop+jwt"}}).Claims(proof.text, Set{key})
			require.ErrorIs(t, err, ErrInvalid, "nobody asked for its key")
		})
	}
	sum := sha256.Sum256([]byte("Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"))
	require.Equal(t, "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo", base64.RawURLEncoding.EncodeToString(sum[:]))
}
