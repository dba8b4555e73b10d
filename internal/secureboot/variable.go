package secureboot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/foxboron/go-uefi/efi/signature"
	"github.com/foxboron/go-uefi/efi/util"
	"github.com/foxboron/go-uefi/efivar"
	"github.com/foxboron/go-uefi/pkcs7"
)

// authenticated is a variable's content behind an EFI_VARIABLE_AUTHENTICATION_2
// (UEFI specification, section 8.2.2): a time, and a signature over name, owner,
// attributes, time and content. Firmware takes no variable that is older than the
// one it has. The library's own function takes the local time for UTC, and ends the
// program where it fails.
func authenticated(v efivar.Efivar, content []byte, signer *Signer, now time.Time) ([]byte, error) {
	now = now.UTC()
	at := util.EFITime{
		Year: uint16(now.Year()), Month: uint8(now.Month()), Day: uint8(now.Day()),
		Hour: uint8(now.Hour()), Minute: uint8(now.Minute()), Second: uint8(now.Second()),
	}
	var signed bytes.Buffer
	for _, c := range []byte(v.Name) {
		signed.Write([]byte{c, 0}) // UTF-16, without a NUL
	}
	if err := errors.Join(
		binary.Write(&signed, binary.LittleEndian, *v.GUID),
		binary.Write(&signed, binary.LittleEndian, v.Attributes),
		binary.Write(&signed, binary.LittleEndian, at),
	); err != nil {
		return nil, err
	}
	signed.Write(content)
	der, err := pkcs7.SignPKCS7(signer.key, signer.cert, pkcs7.OIDData, signed.Bytes(), pkcs7.NoAttr())
	if err != nil {
		return nil, err
	}
	info := cryptobyte.String(der)
	_, data, err := pkcs7.ParseContentInfo(&info) // firmware wants SignedData as such
	if err != nil {
		return nil, err
	}
	a := signature.NewEFIVariableAuthentication2()
	a.Time = at
	a.AuthInfo.Header.Length += uint32(len(data))
	a.AuthInfo.CertData = data
	var out bytes.Buffer
	a.Marshal(&out)
	out.Write(content)
	return out.Bytes(), nil
}
