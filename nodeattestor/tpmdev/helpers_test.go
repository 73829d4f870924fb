package tpmdev_test

import (
	"crypto"
	"os/exec"
)

func hasSwtpm() bool {
	_, err := exec.LookPath("swtpm")
	return err == nil
}

func anyKeys(keys ...crypto.PublicKey) []crypto.PublicKey { return keys }
