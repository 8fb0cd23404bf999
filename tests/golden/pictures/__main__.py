from tests.golden.pictures import write

write()
