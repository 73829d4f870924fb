package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
)

// maxOwnerAuth bounds an authorisation value in bytes: a TPM takes no more than its largest digest.
const maxOwnerAuth = 64

// tpmFlags say which TPM to use.
type tpmFlags struct {
	tpm, ownerAuth string
}

// defaultTPM is the kernel's resource manager of the first TPM.
const defaultTPM = "/dev/tpmrm0"

func (f *tpmFlags) register(c *cobra.Command, path string) {
	c.Flags().StringVar(&f.tpm, "tpm", path, "TPM device, or Unix socket that takes raw TPM commands")
	c.Flags().StringVar(&f.ownerAuth, "owner-auth-file", "", "file with the owner's authorisation, when it is not empty")
}

func (f *tpmFlags) open(ctx context.Context) (*tpmdev.Device, error) { return f.openWith(ctx, "") }

// openWith opens the TPM with the EK of a template.
func (f *tpmFlags) openWith(ctx context.Context, template string) (*tpmdev.Device, error) {
	opts := tpmdev.Options{Template: template}
	if f.ownerAuth != "" {
		var err error
		if opts.OwnerAuth, err = boundedfile.Read(f.ownerAuth, maxOwnerAuth); err != nil {
			return nil, err
		}
	}
	return tpmdev.OpenContext(ctx, f.tpm, opts)
}

// openFor opens the TPM only if it is of the machine whose EKs these are. The session in
// which the owner acts is salted with an EK among them: on whose word the tag is issued,
// on that the TPM is taken for the right one, whoever sits on the bus.
func (f *tpmFlags) openFor(ctx context.Context, ekHashes []string) (*tpmdev.Device, error) {
	dev, err := f.open(ctx)
	if err != nil {
		return nil, err
	}
	all, err := dev.Endorsements(ctx)
	if err := errors.Join(err, dev.Close()); err != nil {
		return nil, err
	}
	for _, e := range all {
		if !slices.Contains(ekHashes, e.Hash.String()) {
			continue
		}
		if dev, err = f.openWith(ctx, e.Template); err != nil {
			return nil, err
		}
		again, err := dev.Endorsement(ctx)
		if err == nil && again.Hash != e.Hash {
			err = fmt.Errorf("the TPM shows EK %s and then %s for one template", e.Hash, again.Hash)
		}
		if err != nil {
			return nil, errors.Join(err, dev.Close())
		}
		return dev, nil
	}
	return nil, refused(errors.New("the tag is of another machine: it names none of this TPM's EKs"))
}
