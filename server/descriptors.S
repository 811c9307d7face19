/* The descriptor set of proto/, for the reflection service (reflection.c). */
    .section .rodata
    .global timbre_descriptors_begin, timbre_descriptors_end
timbre_descriptors_begin:
    .incbin "descriptors.bin"
timbre_descriptors_end:
    .byte 0
    .section .note.GNU-stack,"",%progbits
